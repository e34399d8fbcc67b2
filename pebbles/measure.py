"""Measure an embedded model for its card: ``python pebbles/measure.py --model NAME --out evidence/pebbles/NAME.json``.

Problems come from the test split under a seed that nothing else uses. `card.py` draws the card from what
this writes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from thrifty.bench.runner import first_correct
from thrifty.decoding.controller import Controller
from thrifty.decoding.flow import Call, Flow, conclude, run_flows
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.probe import entropy
from thrifty.decoding.row import Row
from thrifty.models import load_model
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.formats import FORMAT_PROMPTS
from thrifty.models.torch import TorchModel
from thrifty.sandbox import run as run_program
from thrifty.tasks.mix import LEVELS, MixTask
from thrifty.traces.answers import extract_candidates
from thrifty.traces.segments import Transitions, analyse_transitions
from thrifty.traces.selection import vote
from thrifty.traces.trace import Problem, Trace

SEED = 1900
CUTS = (0.0, 0.25, 0.5, 0.75)


class EntropyWatch(Controller):
    """Note the mean entropy in nats of each row's raw distributions while it thinks."""

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        for row, nats in zip(rows, entropy(logits).tolist(), strict=True):
            if row.thinking:
                total, count = row.state.get(self, (0.0, 0))
                row.state[self] = (total + nats, count + 1)
                row.events["entropy"] = (total + nats) / (count + 1)
        return logits


def in_format(problem: Problem, format: str) -> Problem:
    """Return the problem with the system prompt of a format."""
    system = {"role": "system", "content": FORMAT_PROMPTS[format]}
    return replace(problem, messages=(system, *problem.messages))


def judge(task: MixTask, problem: Problem, trace: Trace, format: str = "long") -> Trace:
    """Score a trace; the code format is answered by what the program prints."""
    if format == "code":
        _, fence, block = trace.answer_text.partition("```python\n")
        printed = run_program(block.partition("```")[0]).stdout.strip() if fence else ""
        trace.answer = printed or None
    else:
        trace.answer = task.extract(problem, trace.answer_text) if trace.closed_by else None
    trace.correct = task.score(problem, trace.answer) >= 1.0
    return trace


class Measurement:
    """What one model does on the problems of one level.

    Args:
        model: which.
        level: of the mix.
        count: problems of each family.
        batch_size: rows decoded together.
    """

    def __init__(self, model: TorchModel, level: str, count: int, batch_size: int) -> None:
        self.model, self.task = model, MixTask(level)
        total = count * len(LEVELS[level])
        self.problems = {p.id: p for p in self.task.problems(total, SEED)}
        self.settings = Settings(max_tokens=1536, batch_size=batch_size)

    def formats(self) -> dict[str, Any]:
        """Return accuracy and tokens by format and family."""
        found: dict[str, Any] = {}
        for format in FORMAT_PROMPTS:
            asked = {key: in_format(p, format) for key, p in self.problems.items()}
            rows: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
            for trace in self._decode(asked.values()):
                problem = self.problems[trace.problem_id]
                judge(self.task, problem, trace, format)
                for name in (problem.metadata["family"], "all"):
                    rows[name][0] += 1
                    rows[name][1] += bool(trace.correct)
                    rows[name][2] += trace.usage.generated
            found[format] = {name: {"n": n, "right": r, "tokens": t / n} for name, (n, r, t) in rows.items()}
        return found

    def _decode(self, problems: Any, controllers: Sequence[Controller] = ()) -> Iterator[Trace]:
        jobs = jobs_for(problems, 1)
        model = self.model
        return decode(model, jobs, self.settings, lambda j: Plan(model.render(j.problem.messages), controllers), "card")

    def reflections(self) -> dict[str, Any]:
        """Return what long thinking does after its first answer, and how uncertain it is."""
        after, entropies, first_right, last_right, transitions = [], [], 0, 0, Transitions()
        traces = list(self._decode(self.problems.values(), [EntropyWatch()]))
        for trace in traces:
            problem = self.problems[trace.problem_id]
            judge(self.task, problem, trace)
            entropies.append(trace.events.get("entropy", 0.0))
            stated = [c for line in trace.thinking_text.split("\n") if (c := extract_candidates(line)) is not None]
            right = [self.task.score(problem, c) >= 1.0 for c in stated]
            transitions += analyse_transitions(stated, right)
            first_right += bool(right and right[0])
            last_right += bool(trace.correct)
            at = first_correct(trace, problem, self.task, self.model)
            if at is not None:
                written = trace.usage.thinking + trace.usage.injected
                after.append(1 - at / max(1, written))
        return {
            "n": len(traces),
            "first_right": first_right,
            "final_right": last_right,
            "after_first_correct": sum(after) / max(1, len(after)),
            "stated_right_once": len(after),
            "transitions": asdict(transitions),
            "entropy": sum(entropies) / len(entropies),
        }

    def cuts(self) -> dict[str, Any]:
        """Return the accuracy when the thinking is closed after a share of its tokens."""
        right = dict.fromkeys(CUTS, 0)

        def flow(job: Job) -> Flow:
            prompt = self.model.render(job.problem.messages)
            (whole,) = yield [Call(prompt)]
            thinking = whole.ids[: whole.thinking_tokens]
            texts = [self.model.texts.text(thinking[: int(share * len(thinking))]) for share in CUTS]
            closed = [text + ("" if text.endswith("\n") else "\n") + self.model.think.force_close for text in texts]
            rows = yield [Call(prompt, prefix=text) for text in closed]
            for share, row in zip(CUTS, rows, strict=True):
                right[share] += bool(judge(self.task, job.problem, row.trace("cut")).correct)
            return conclude(whole, "cut")

        n = sum(1 for _ in run_flows(self.model, jobs_for(self.problems.values(), 1), self.settings, flow))
        return {"n": n, "right": {str(share): count for share, count in right.items()}}

    def sampling(self, temperature: float, samples: int = 8) -> dict[str, Any]:
        """Return pass@1, pass@k and majority@k at a temperature."""
        settings = self.settings.with_(temperature=temperature)
        answers: dict[str, list[tuple[bool, str | None]]] = defaultdict(list)
        jobs = jobs_for(self.problems.values(), samples)
        plan = lambda job: Plan(self.model.render(job.problem.messages))  # noqa: E731  # one line reads better
        for trace in decode(self.model, jobs, settings, plan, "card"):
            judged = judge(self.task, self.problems[trace.problem_id], trace)
            answers[trace.problem_id].append((bool(judged.correct), judged.answer))
        majority = 0
        for found in answers.values():
            winner = vote([answer for _, answer in found])
            majority += winner is not None and found[winner][0]
        n = len(answers)
        return {
            "n": n,
            "samples": samples,
            "pass_1": sum(right for found in answers.values() for right, _ in found) / (n * samples),
            "pass_k": sum(any(right for right, _ in found) for found in answers.values()) / n,
            "majority_k": majority / n,
        }


def training(run: Path, points: int = 12) -> dict[str, Any]:
    """Return what a folder of `train.py` tells of its run, and some points of its curve: tokens and loss in nats."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    parts = [rows[i * len(rows) // points : (i + 1) * len(rows) // points] for i in range(points)]
    curve = [[part[-1]["tokens"], round(sum(row["loss"] for row in part) / len(part), 4)] for part in parts if part]
    return {**json.loads((run / "training.json").read_text()), "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--out", required=True)
    parser.add_argument("--count", type=int, default=40, help="problems of each family and level")
    parser.add_argument("--sampled", type=int, default=15, help="problems of each family that are sampled from")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--run", type=Path, help="folder in which train.py trained it, for its training curve")
    args = parser.parse_args()
    model = load_model(args.model)
    assert isinstance(model, TorchModel)
    started = time.time()
    found: dict[str, Any] = {"model": args.model, "parameters": model.parameters, "seed": SEED, "levels": {}}
    found["command"] = "python " + shlex.join(sys.argv)
    if args.run:
        found["training"] = training(args.run)
    for level in LEVELS:
        at = Measurement(model, level, args.count, args.batch_size)
        found["levels"][level] = {"formats": at.formats(), "reflections": at.reflections(), "cuts": at.cuts()}
        print(level, json.dumps(found["levels"][level]["formats"]["long"]), flush=True)
    sampled = Measurement(model, "default", args.sampled, args.batch_size)
    found["sampling"] = {str(t): sampled.sampling(t) for t in (0.6, 1.0)}
    found["seconds"] = round(time.time() - started)
    Path(args.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
