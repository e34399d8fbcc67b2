"""Run methods on a task, resume where it stopped, and sum it all up."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.bench.statistics import cap_budget_for, summarise, thinking_tokens
from thrifty.bench.store import Key, RunStore, read_records
from thrifty.catalogue import Need
from thrifty.errors import BadTask, ThriftyError
from thrifty.methods import get_method
from thrifty.methods.base import Composition
from thrifty.models.base import Job, Model, Settings, jobs_for
from thrifty.tasks.base import Task
from thrifty.traces.answers import extract_candidates
from thrifty.traces.trace import Problem, Trace, Usage

Progress = Callable[[str, int, int, int], None]
"""Told when a method begins and after every record: method, records done, records in all, tokens written so far."""


def _silent(method: str, done: int, total: int, tokens: int) -> None:
    pass


@dataclass(frozen=True)
class Bench:
    """One measurement: a model, a task, the methods, and where the records go.

    Attributes:
        model: answers.
        task: asks and scores.
        methods: specifications; vanilla is run in any case, for everything is measured against it.
        out: folder of the run; what it holds already is not computed again.
        limit: number of problems, None for all of a finite task.
        settings: how to generate; its seed also picks the problems.
        caps: whether to run, for each method, the plain cap at that method's own mean length.
    """

    model: Model
    task: Task
    methods: tuple[str, ...]
    out: Path
    limit: int | None = 100
    settings: Settings = field(default_factory=Settings)
    caps: bool = True

    def run(self, progress: Progress = _silent) -> dict[str, Any]:
        """Compute what is missing, and return the summary that ``summary.json`` then holds.

        Raises:
            ThriftyError: a method cannot run on the model, the task is empty, the folder holds something
                else or cannot be written. All but the last are found before any work starts.
        """
        methods = {m.spec: m for m in (get_method(spec) for spec in ("vanilla", *self.methods))}
        for method in methods.values():
            method.check(self.model)
        with RunStore(self.out) as store:
            self._require_problem()
            store.configure(self._config())
            done = store.done()
            for spec, method in methods.items():
                self._run_method(store, spec, method, done, progress)
            caps = self._run_caps(store, list(methods), done, progress) if self.caps else {}
            store.write("plan.json", json.dumps({"methods": list(methods), "caps": caps, "limit": self.limit}) + "\n")
            summary = summarise_run(self.out)
            store.write("summary.json", json.dumps(summary, indent=2) + "\n")
        return summary

    def _config(self) -> dict[str, Any]:
        """Return what the tokens depend on. The batch size, the limit and the methods are not among it."""
        settings = dataclasses.asdict(self.settings)
        del settings["batch_size"]
        settings["stop"] = list(self.settings.stop)
        dtype = str(getattr(self.model, "dtype", "")).removeprefix("torch.")
        think = getattr(getattr(self.model, "think", None), "name", "")
        return {"model": self.model.name, "task": self.task.name, "dtype": dtype, "think": think, **settings}

    def _problems(self) -> Iterator[Problem]:
        return self.task.problems(self.limit, self.settings.seed, "test")

    def _require_problem(self) -> None:
        if next(self._problems(), None) is None:
            raise BadTask(f"task {self.task.name!r} holds no problem; nothing to measure")

    def _run_method(self, store: RunStore, spec: str, method: Composition, done: set[Key], progress: Progress) -> None:
        waiting: dict[tuple[str, int], tuple[int, Problem]] = {}
        total = 0

        def missing() -> Iterator[Job]:
            nonlocal total
            for total, job in enumerate(jobs_for(self._problems(), self.settings.samples), start=1):
                if (spec, job.problem.id, job.sample) not in done:
                    waiting[job.problem.id, job.sample] = ((total - 1) // self.settings.samples, job.problem)
                    yield job

        expected = self.limit * self.settings.samples if self.limit else 0
        before = sum(1 for key in done if key[0] == spec)
        tokens = 0
        clock, cpu = time.perf_counter(), time.process_time()
        progress(spec, before, expected, 0)
        traces = method.solve(self.model, missing(), self.settings)
        for finished, trace in enumerate(traces, start=before + 1):
            index, problem = waiting.pop((trace.problem_id, trace.sample))
            self.score(trace, problem)
            now, now_cpu = time.perf_counter(), time.process_time()
            cost = {
                "wall_seconds": round(now - clock, 4),
                "cpu_seconds": round(now_cpu - cpu, 4),
                "peak_rss_mib": peak_rss_mib(),
            }
            clock, cpu = now, now_cpu
            store.append(self._record(trace, index, problem, spec, cost))
            done.add((spec, trace.problem_id, trace.sample))
            tokens += trace.usage.generated
            progress(spec, finished, max(expected, total), tokens)

    def score(self, trace: Trace, problem: Problem) -> None:
        """Extract the answer by the task's rule and judge it; an unclosed think block holds none."""
        trace.answer = self.task.extract(problem, trace.answer_text) if trace.closed_by else None
        trace.correct = self.task.score(problem, trace.answer) >= 1.0

    def _record(self, trace: Trace, index: int, problem: Problem, spec: str, cost: dict[str, float]) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(trace.to_json())
        record.update(
            method=spec,
            index=index,
            question=problem.question,
            reference=problem.answer,
            exit_reason=trace.exit_reason,
            first_correct_tokens=first_correct(trace, problem, self.task, self.model),
            cost=cost,
        )
        return record

    def _run_caps(self, store: RunStore, methods: list[str], done: set[Key], progress: Progress) -> dict[str, str]:
        """Run, for each method, the cap whose mean total is the method's own; return method to cap."""
        if Need.SAMPLING not in self.model.gives or not getattr(getattr(self.model, "think", None), "thinks", False):
            return {}
        vanilla: list[dict[str, Any]] = []
        totals: dict[str, list[int]] = {spec: [] for spec in methods}
        for record in _within(store.records(), self.limit):
            if record["method"] in totals:
                totals[record["method"]].append(Usage(**record["usage"]).total)
                if record["method"] == "vanilla":
                    vanilla.append(_lengths(record))
        thinking = np.array([r["thinking"] for r in vanilla])
        other = np.array([r["total"] - r["thinking"] for r in vanilla])
        closing = float(getattr(self.model, "close_length", 0))
        caps: dict[str, str] = {}
        for spec in methods:
            if spec == "vanilla" or ("+" not in spec and spec.partition("(")[0] == "cap"):
                continue
            budget = cap_budget_for(thinking, other, float(np.mean(totals[spec])), closing)
            if budget >= thinking.max():
                caps[spec] = "vanilla"
                continue
            cap = get_method(f"cap(budget={budget})")
            caps[spec] = cap.spec
            self._reuse_vanilla(store, cap.spec, budget, vanilla, done)
            self._run_method(store, cap.spec, cap, done, progress)
        return caps

    def _reuse_vanilla(
        self, store: RunStore, spec: str, budget: int, vanilla: list[dict[str, Any]], done: set[Key]
    ) -> None:
        """Copy the vanilla traces that a cap would not have touched: they are the same, token for token."""
        same = {
            (r["problem_id"], r["sample"])
            for r in vanilla
            if r["thinking"] <= budget and r["closed_by"] == "model"
            if (spec, r["problem_id"], r["sample"]) not in done
        }
        if not same:
            return
        for record in store.records():  # what is appended meanwhile is read too, and is not vanilla's
            if record["method"] == "vanilla" and (record["problem_id"], record["sample"]) in same:
                record["method"] = spec
                record["cost"] = {"wall_seconds": 0.0, "cpu_seconds": 0.0, "peak_rss_mib": 0.0}
                store.append(record)
                done.add((spec, record["problem_id"], record["sample"]))


def _within(records: Iterator[dict[str, Any]], limit: int | None) -> Iterator[dict[str, Any]]:
    """Leave out the records of problems beyond the limit, which an earlier, larger run may have left."""
    return (r for r in records if limit is None or r["index"] < limit)


def _lengths(record: dict[str, Any]) -> dict[str, Any]:
    kept = {key: record[key] for key in ("problem_id", "sample", "closed_by")}
    return {**kept, "thinking": thinking_tokens(record), "total": Usage(**record["usage"]).total}


def peak_rss_mib() -> float:
    """Return the largest memory this process has held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def first_correct(trace: Trace, problem: Problem, task: Task, model: Model) -> int | None:
    """Return how many thinking tokens were written when a line first stated the right answer.

    Lines are read by the regular expressions of `extract_candidates`; None if no line states it, or the
    backend does not tell token ids.
    """
    texts = getattr(model, "texts", None)
    if texts is None or problem.answer is None:
        return None
    verdicts: dict[str, bool] = {}
    count, line = 0, b""
    for segment in trace.segments:
        if segment.phase != "thinking" or segment.kind not in ("thinking", "injected", "latent"):
            continue
        for token in segment.ids:
            count += 1
            line += texts.bytes_of(token)
            if b"\n" not in line:
                continue
            candidate = extract_candidates(line.decode(errors="replace").strip())
            line = b""
            if candidate is None:
                continue
            if candidate not in verdicts:
                verdicts[candidate] = task.score(problem, candidate) >= 1.0
            if verdicts[candidate]:
                return count
    return None


def summarise_run(folder: Path) -> dict[str, Any]:
    """Sum up the records of a folder, as far as they go.

    Raises:
        ThriftyError: the folder holds no run.
    """
    config, plan = _json_of(folder / "config.json"), _json_of(folder / "plan.json", optional=True)
    records_path = folder / "records.jsonl"
    if not records_path.exists():
        raise ThriftyError(f"{folder} holds no records: give the --out folder of a bench")
    costs: dict[str, dict[str, float]] = {}
    seen: list[str] = []
    limit = plan.get("limit")
    for record in _within(read_records(records_path), limit):
        spec, cost = record["method"], record["cost"]
        if spec not in costs:
            seen.append(spec)
            costs[spec] = {"wall_seconds": 0.0, "cpu_seconds": 0.0, "peak_rss_mib": 0.0}
        costs[spec]["wall_seconds"] += cost["wall_seconds"]
        costs[spec]["cpu_seconds"] += cost["cpu_seconds"]
        costs[spec]["peak_rss_mib"] = max(costs[spec]["peak_rss_mib"], cost["peak_rss_mib"])
    meta = {
        **{k: config[k] for k in ("model", "task", "seed", "samples")},
        "limit": limit,
        "methods": plan.get("methods", seen),
        "caps": plan.get("caps", {}),
        "costs": costs,
    }
    return summarise(_within(read_records(records_path), limit), meta)


def _json_of(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ThriftyError(f"{path.parent} holds no run ({path.name} cannot be read): give a bench's --out") from error
    return dict(found)
