"""What steering costs beside the bare loop, probes apart: ``python benchmarks/controllers.py``.

Every hook of every controller is timed where it runs. What a hook spends on the model itself, in probes and
on what it rewrote, is counted apart: those passes are what the method buys, and its traces account for them.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from thrifty.decoding.batch import DecodeBatch
from thrifty.decoding.controller import Controller
from thrifty.methods import get_method
from thrifty.methods.control import cgrs
from thrifty.models import load_model
from thrifty.models.base import Settings, jobs_for
from thrifty.tasks import load_task

HOOKS = ("begin", "adjust_logits", "next_input", "after_token", "see_hidden")
METHODS = "cap(budget=64),s1,cgrs,first-try,tldr,concisehint,cgrs+first-try,cgrs+tldr+concisehint"


class Clock:
    """CPU seconds of this thread by what they were spent on; what is timed within counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inner = [0.0]

    def timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            started = time.thread_time()
            self._inner.append(0.0)
            try:
                return function(*args, **options)
            finally:
                spent = time.thread_time() - started
                self.seconds[kind] += spent - self._inner.pop()
                self.calls[kind] += 1
                self._inner[-1] += spent

        return run


def subclasses(cls: type) -> list[type]:
    """Return a class's subclasses at any depth."""
    return [below for child in cls.__subclasses__() for below in (child, *subclasses(child))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--task", default="mix")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--methods", default=METHODS)
    args = parser.parse_args()
    model, task = load_model(args.model), load_task(args.task)
    methods = [get_method(spec) for spec in args.methods.split(",")]
    clock = Clock()
    for cls in subclasses(Controller):
        for hook in HOOKS:
            if hook in vars(cls):
                setattr(cls, hook, clock.timed("hooks", vars(cls)[hook]))
    vars(cgrs)["probe_answers"] = clock.timed("probes", cgrs.probe_answers)
    for name in ("rewrite", "fork"):
        setattr(DecodeBatch, name, clock.timed("probes", getattr(DecodeBatch, name)))
    settings = Settings(max_tokens=args.max_tokens, batch_size=args.batch_size)
    found = {}
    for method in methods:
        clock.seconds.clear()
        clock.calls.clear()
        started = time.thread_time()
        traces = list(method.solve(model, jobs_for(task.problems(args.problems, seed=7), 1), settings))
        total = time.thread_time() - started
        bare = total - clock.seconds["hooks"] - clock.seconds["probes"]
        found[method.spec] = {
            "overhead": round(clock.seconds["hooks"] / bare, 4),
            "probes": round(clock.seconds["probes"] / bare, 4),
            "probe_tokens": sum(trace.usage.probe for trace in traces),
            "tokens": sum(trace.usage.generated for trace in traces),
        }
        print(f"{method.spec:<28}{json.dumps(found[method.spec])}", flush=True)
    print(json.dumps({"benchmark": "controllers", "model": args.model, "batch_size": args.batch_size, **found}))


if __name__ == "__main__":
    main()
