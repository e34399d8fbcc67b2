"""Measure stopping and voting on recorded traces of large models: ``python evidence/replay.py ../shared/data``.

It converts two sets of recordings for `thrifty.models.replay`, plays them under each method, and writes
evidence/replay.json. What was found in words is written by hand into its ``finding`` and survives measuring again.

- ``traces_mip`` (github.com/tianyi-lab/MiP-Overthinking, MIT): 295 well-posed GSM8K questions, one greedy response of
  each model. R1, QwQ and R1-Distill leave the closing marker only; s1.1 writes ``think`` and ``answer`` as lines.
- ``traces_math_groups`` (github.com/QwenLM/Qwen2.5-Math, MIT): eight sampled solutions of 44 MATH questions by a model
  without think blocks. The whole solution is taken as the thinking and its final answer as the answer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.bench.statistics import PerProblem, cap_budget_for, paired_bootstrap, wilson
from thrifty.methods import get_method
from thrifty.models.base import Settings, jobs_for
from thrifty.models.replay import ReplayModel, load_replay
from thrifty.tasks.base import Task
from thrifty.tasks.replay import ReplayTask
from thrifty.traces.answers import extract_candidates
from thrifty.traces.equality import check
from thrifty.traces.trace import Problem, Trace

MODELS = ("DeepSeek-R1", "QwQ-32B", "DeepSeek-R1-Distill-Qwen-32B", "s1.1-32B")
TRIES = (1, 2, 3)
PAPER = {
    "system": "first-try (arXiv 2510.08308): Qwen3-8B, average of AIME24, AIME25, AMC, MATH500 and Olympiad",
    "one try for every question": {"thinking_ratio": 0.701, "accuracy_diff": -0.038},
    "three tries where a classifier asks for them": {"thinking_ratio": 0.755, "accuracy_diff": -0.029},
    "three tries for every question": {"thinking_ratio": 0.880, "accuracy_diff": -0.010},
}
"""The paper's own figures, with its trained detector at a threshold of 0.5."""


def mip_records(folder: Path, model: str) -> list[dict[str, Any]]:
    """Return the well-posed GSM8K traces of a model as recordings, in the same order of questions for all models."""
    records = []
    with (folder / "dev.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if (row["model"], row["dataset"], row["condition"]) == (model, "gsm8k", "well-posed"):
                response = row["trace"]
                if model.startswith("s1"):  # its special tokens were stripped, and left their names
                    thinking, _, answer = response.removeprefix("think\n").partition("\nanswer\n")
                    response = f"<think>\n{thinking}\n</think>\n\n{answer}"
                kept = {key: row[key] for key in ("id", "question", "answer", "model")}
                records.append({**kept, "response": response})
    return sorted(records, key=lambda record: str(record["question"]))


def group_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of the MATH groups as recordings: the solution is the thinking, its answer the answer."""
    with (folder / "dev.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            for sample, solution in enumerate(row["samples"]):
                response = f"<think>\n{solution['text']}\n</think>\n\n\\boxed{{{solution['pred']}}}"
                kept = {key: row[key] for key in ("id", "question", "answer")}
                yield {**kept, "response": response, "sample": sample, "kind": "math"}


def majority(answers: Sequence[str | None], equal: Callable[[str, str], bool]) -> str | None:
    """Return the answer that most responses give; the earliest of equals, None if no response gives any.

    Args:
        answers: of the samples of one problem, in order.
        equal: whether two answers are the same.
    """
    votes: list[tuple[str, int]] = []
    for answer in answers:
        if answer is None:
            continue
        place = next((i for i, (known, _) in enumerate(votes) if equal(known, answer)), None)
        if place is None:
            votes.append((answer, 1))
        else:
            votes[place] = (votes[place][0], votes[place][1] + 1)
    return max(votes, key=lambda vote: vote[1])[0] if votes else None


class Replay:
    """One file of recordings with everything that is measured on it.

    Args:
        records: the recordings.
        folder: where to write them.
        samples: how many of each problem.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], folder: Path, samples: int = 1) -> None:
        path = folder / "recordings.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        self.model: ReplayModel = load_replay(str(path))
        self.task: Task = ReplayTask(path)
        self.problems: dict[str, Problem] = {p.id: p for p in self.task.problems()}
        self.samples = samples
        self.verdicts: dict[tuple[str, str | None], bool] = {}

    def play(self, spec: str, loop_stop: bool = False) -> list[Trace]:
        """Return the scored traces of a method, in the order of problems and samples."""
        longest = max(map(len, (r.response for r in self.model.recordings)))
        settings = Settings(
            max_tokens=2 * longest, answer_reserve=0, loop_stop=loop_stop, samples=self.samples, batch_size=256
        )
        jobs = jobs_for(self.problems.values(), self.samples)
        traces = list(get_method(spec).solve(self.model, jobs, settings))
        for trace in traces:
            problem = self.problems[trace.problem_id]
            trace.answer = self.task.extract(problem, trace.answer_text) if trace.closed_by else None
            trace.correct = self.score(problem, trace.answer)
        order = list(self.problems)
        return sorted(traces, key=lambda trace: (order.index(trace.problem_id), trace.sample))

    def score(self, problem: Problem, answer: str | None) -> bool:
        """Return whether an answer is right; formulas are compared once only."""
        key = (problem.id, answer)
        if key not in self.verdicts:
            self.verdicts[key] = self.task.score(problem, answer) >= 1.0
        return self.verdicts[key]

    def means(self, traces: Sequence[Trace]) -> PerProblem:
        """Return thinking tokens and accuracy of each problem."""
        shape = (len(self.problems), self.samples)
        thinking = np.array([t.usage.thinking for t in traces], dtype=np.float64).reshape(shape)
        correct = np.array([bool(t.correct) for t in traces], dtype=np.float64).reshape(shape)
        return PerProblem(thinking.mean(1), correct.mean(1))

    def positions(self, vanilla: Sequence[Trace]) -> dict[str, Any]:
        """Return where the right answer first stands in the thinking of untouched traces.

        ``stated`` is the first line that states it as the answer, in the eyes of first-try's detector; ``mentioned``
        the first line that holds its digits at all, by chance or not. The truth lies between the two.
        """
        thinking = np.array([t.usage.thinking for t in vanilla])
        lines = [t.thinking_text.splitlines(keepends=True) for t in vanilla]
        candidates = [[extract_candidates(line) for line in of_one] for of_one in lines]
        problems = [self.problems[t.problem_id] for t in vanilla]
        stated, mentioned = [], []
        for problem, of_one, stated_by_line in zip(problems, lines, candidates, strict=True):
            digits = re.compile(rf"(?<![\d.,]){re.escape(problem.answer or '')}(?!\d|[.,]\d)")
            right = [c is not None and self.score(problem, c) for c in stated_by_line]
            stated.append(self._tokens_through(of_one, right))
            mentioned.append(self._tokens_through(of_one, [bool(digits.search(line)) for line in of_one]))
        return {
            "some_candidate_share": _rounded(np.mean([any(of_one) for of_one in candidates])),
            "stated": _position(stated, thinking),
            "mentioned": _position(mentioned, thinking),
        }

    def _tokens_through(self, lines: Sequence[str], wanted: Sequence[bool]) -> int | None:
        """Return how many tokens stand up to the end of the first wanted line."""
        if not any(wanted):
            return None
        return sum(len(self.model.encode(line)) for line in lines[: wanted.index(True) + 1])

    def against(self, traces: Sequence[Trace], vanilla: Sequence[Trace]) -> dict[str, Any]:
        """Return what a method saved and cost."""
        compared = paired_bootstrap(self.means(traces), self.means(vanilla))
        pairs = list(zip(traces, vanilla, strict=True))
        return {
            "accuracy": _rounded(np.mean([bool(t.correct) for t in traces])),
            "accuracy_diff": _rounded(compared.accuracy_difference),
            "accuracy_diff_ci": [_rounded(end) for end in compared.accuracy_difference_interval],
            "thinking_tokens_mean": _rounded(np.mean([t.usage.thinking for t in traces])),
            "thinking_ratio": _rounded(compared.token_ratio),
            "thinking_ratio_ci": [_rounded(end) for end in compared.token_ratio_interval],
            "cut": sum(t.events["replayed"] == "cut" for t in traces),
            "became_wrong": sum(bool(before.correct and not after.correct) for after, before in pairs),
            "became_right": sum(bool(after.correct and not before.correct) for after, before in pairs),
        }

    def measure(self) -> tuple[dict[str, Any], dict[str, list[Trace]]]:
        """Return all figures of this file, and the traces of each method."""
        vanilla = self.play("vanilla")
        traces = {"vanilla": vanilla}
        correct = sum(bool(t.correct) for t in vanilla)
        found: dict[str, Any] = {
            "problems": len(self.problems),
            "n": len(vanilla),
            "vanilla": {
                "accuracy": _rounded(correct / len(vanilla)),
                "accuracy_ci": [_rounded(end) for end in wilson(correct, len(vanilla))],
                "thinking_tokens_mean": _rounded(np.mean([t.usage.thinking for t in vanilla])),
                "answer_tokens_mean": _rounded(np.mean([t.usage.answer for t in vanilla])),
                "unclosed": sum(t.closed_by is None for t in vanilla),
            },
            "first_correct": self.positions(vanilla),
            "methods": {},
        }
        thinking = [t.usage.thinking for t in vanilla]
        for tries in TRIES:
            spec = f"first-try(tries={tries})"
            traces[spec] = self.play(spec)
            budget = cap_budget_for(thinking, [0] * len(vanilla), float(np.mean(_thinking(traces[spec]))), 0)
            found["methods"][spec] = self.against(traces[spec], vanilla)
            cap = f"cap(budget={budget})"
            found["methods"][spec]["cap"] = {"spec": cap, **self.against(self.play(cap), vanilla)}
        traces["loop-stop"] = self.play("vanilla", loop_stop=True)
        found["methods"]["loop-stop"] = self.against(traces["loop-stop"], vanilla)
        return found, traces

    def votes(self, vanilla: Sequence[Trace]) -> dict[str, Any]:
        """Return the accuracy of majority voting over the first k samples."""
        found = {}
        for k in (1, 3, 5, 8):
            right, tokens = 0, 0
            for problem in self.problems.values():
                mine = [t for t in vanilla if t.problem_id == problem.id][:k]
                equal = partial(check, kind=problem.metadata["kind"])
                chosen = majority([t.answer for t in mine], equal)
                right += self.score(problem, chosen)
                tokens += sum(t.usage.thinking for t in mine)
            count = len(self.problems)
            interval = [_rounded(end) for end in wilson(right, count)]
            found[f"majority of {k}"] = {
                "right": right,
                "of": count,
                "accuracy_ci": interval,
                "tokens_mean": _rounded(tokens / count),
            }
        return found


def _thinking(traces: Sequence[Trace]) -> list[int]:
    return [t.usage.thinking for t in traces]


def _position(first: Sequence[int | None], thinking: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Sum up positions: over the traces that have one, tokens before it as a share of the thinking."""
    there = [i for i, position in enumerate(first) if position is not None]
    before = np.array([first[i] for i in there], dtype=np.float64)
    shares = before / thinking[there]
    return {
        "traces_that_have_one_share": _rounded(len(there) / len(first)),
        "position_median": _rounded(np.median(shares)),
        "position_mean": _rounded(shares.mean()),
        "tokens_after_share": _rounded(1 - before.sum() / thinking[there].sum()),
    }


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def pooled(runs: Sequence[tuple[Replay, dict[str, list[Trace]]]], spec: str) -> dict[str, Any]:
    """Return a method against vanilla over all models, each question being one unit.

    Tokens are those of the whole account, with as long an answer as was recorded: a cut's own answer is a stub.
    """

    questions = [[problem.question for problem in replay.problems.values()] for replay, _ in runs]
    assert all(asked == questions[0] for asked in questions), "each question must be one unit"

    def means(method: str) -> PerProblem:
        tokens, correct = [], []
        for _, traces in runs:
            pairs = zip(traces[method], traces["vanilla"], strict=True)
            tokens.append([t.usage.prompt + t.usage.thinking + t.usage.injected + v.usage.answer for t, v in pairs])
            correct.append([bool(t.correct) for t in traces[method]])
        return PerProblem(np.mean(np.array(tokens, dtype=np.float64), 0), np.mean(np.array(correct, dtype=float), 0))

    compared = paired_bootstrap(means(spec), means("vanilla"))
    return {
        "accuracy": _rounded(means(spec).accuracy.mean()),
        "accuracy_diff": _rounded(compared.accuracy_difference),
        "accuracy_diff_ci": [_rounded(end) for end in compared.accuracy_difference_interval],
        "token_ratio": _rounded(compared.token_ratio),
        "token_ratio_ci": [_rounded(end) for end in compared.token_ratio_interval],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path, help="the folder that holds traces_mip and traces_math_groups")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--date", default=datetime.datetime.now(datetime.UTC).date().isoformat())
    args = parser.parse_args()
    results: dict[str, Any] = {}
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            replay = Replay(mip_records(args.data / "traces_mip", name), Path(folder))
            results[f"GSM8K, {name}"], traces = replay.measure()
            runs.append((replay, traces))
            print(name, json.dumps(results[f"GSM8K, {name}"]), flush=True)
        groups = Replay(group_records(args.data / "traces_math_groups"), Path(folder), samples=8)
        results["MATH groups, Qwen2.5-Math"], traces = groups.measure()
        results["MATH groups, Qwen2.5-Math"]["majority"] = groups.votes(traces["vanilla"])
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    evidence = {
        "slug": "first-try",
        "title": "first-try on recorded traces of four large models",
        "family": "control",
        "command": "python evidence/replay.py ../shared/data",
        "model": f"replay: {', '.join(MODELS)}",
        "task": "GSM8K, 295 well-posed questions",
        "n": sum(results[f"GSM8K, {name}"]["n"] for name in MODELS),
        "date": args.date,
        "result": pooled(runs, "first-try(tries=1)"),
        "paper": PAPER,
        "results": results,
        "finding": before.get("finding", ""),
    }
    args.out.write_text(json.dumps(evidence, indent=1) + "\n")
    print(json.dumps(results["MATH groups, Qwen2.5-Math"]), json.dumps(evidence["result"]))


if __name__ == "__main__":
    main()
