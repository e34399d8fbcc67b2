"""Decode speed against Hugging Face ``generate`` in one process, interleaved: ``make bench-speed``.

Every configuration is run in turn, round after round, and compared within its round, so that a machine
whose speed drifts cannot favour anyone. Prints a line for each comparison and ends with one JSON line.

    python benchmarks/decode.py                                  # pebble
    python benchmarks/decode.py --model FOLDER --problems 24     # any other model
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from thrifty.decoding.controller import Controller
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.probe import entropy
from thrifty.decoding.row import Row
from thrifty.models import load_model
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem


class ReadEntropy(Controller):
    """The cheapest controller that looks at the whole distribution at every step."""

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        self.last = entropy(logits)
        return logits


def ours(model: TorchModel, problems: list[Problem], batch: int, limit: int, controllers: list[Controller]) -> int:
    """Decode with this library; return the tokens written."""
    settings = Settings(max_tokens=limit, batch_size=batch, answer_reserve=0, loop_stop=False)
    traces = decode(
        model,
        jobs_for(problems, 1),
        settings,
        lambda job: Plan(model.render(job.problem.messages), controllers),
        "speed",
    )
    return sum(trace.usage.generated for trace in traces)


def theirs(model: TorchModel, problems: list[Problem], batch: int, limit: int) -> int:
    """Decode with ``generate`` in fixed batches; return the tokens up to each row's end, padding not counted."""
    pad = model.tokenizer.pad_token_id
    pad = next(iter(model.eos_ids)) if pad is None else pad
    written = 0
    for start in range(0, len(problems), batch):
        prompts = [model.encode_prompt(model.render(p.messages)) for p in problems[start : start + batch]]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = model.network.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=pad)[
            :, width:
        ]
        for row in out.tolist():
            ends = [i for i, token in enumerate(row) if token in model.eos_ids]
            written += ends[0] + 1 if ends else len(row)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--problems", type=int, default=96, help="for the comparison at batch 32")
    parser.add_argument("--single", type=int, default=6, help="problems for the comparison at batch 1")
    parser.add_argument("--max-tokens", type=int, default=1024, help="as `thrifty bench` has it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="comparisons to run, with commas between: batch_1, batch_32, entropy")
    args = parser.parse_args()
    model = load_model(args.model)
    assert isinstance(model, TorchModel)
    problems = list(load_task("mix").problems(limit=args.problems, seed=7))
    few = problems[: args.single]
    runs: dict[str, Callable[[], int]] = {
        "thrifty-1": lambda: ours(model, few, 1, args.max_tokens, []),
        "generate-1": lambda: theirs(model, few, 1, args.max_tokens),
        "thrifty-32": lambda: ours(model, problems, 32, args.max_tokens, []),
        "generate-32": lambda: theirs(model, problems, 32, args.max_tokens),
        "entropy-32": lambda: ours(model, problems, 32, args.max_tokens, [ReadEntropy()]),
    }
    pairs = {
        "batch_1": ("thrifty-1", "generate-1"),
        "batch_32": ("thrifty-32", "generate-32"),
        "entropy": ("entropy-32", "thrifty-32"),
    }
    if args.only:
        pairs = {label: pairs[label] for label in args.only.split(",")}
        wanted = {name for pair in pairs.values() for name in pair}
        runs = {name: run for name, run in runs.items() if name in wanted}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    ours(model, problems[:32], 32, 64, [ReadEntropy()])  # warm-up: kernels, allocator, token texts
    theirs(model, problems[:32], 32, 64)
    for round_number in range(args.rounds):
        order = list(runs) if round_number % 2 == 0 else list(reversed(runs))
        for name in order:
            # CPU time of all threads: on a shared machine wall time measures the neighbours
            started = time.process_time()
            tokens = runs[name]()
            speeds[name].append(tokens / (time.process_time() - started))
    ratios = {
        label: [a / b for a, b in zip(speeds[first], speeds[second], strict=True)]
        for label, (first, second) in pairs.items()
    }
    for name, values in speeds.items():
        print(f"{name:<14}{statistics.median(values):>10,.0f} tokens per CPU second")
    for label, values in ratios.items():
        print(f"{label:<22}{statistics.median(values):.3f}x  (rounds {min(values):.3f} to {max(values):.3f})")
    result = {
        "benchmark": "decode",
        "model": args.model,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "tokens_per_cpu_second": {k: round(statistics.median(v), 1) for k, v in speeds.items()},
        "ratio": {k: round(statistics.median(v), 3) for k, v in ratios.items()},
    }
    if not args.only:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ours(model, list(load_task("mix").problems(limit=args.problems * 4, seed=8)), 32, args.max_tokens, [])
        result["memory_growth_mib"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)
        print(f"memory grown by four times as many problems: {result['memory_growth_mib']} MiB")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
