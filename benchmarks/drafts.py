"""What drafts save: the same sampled best-of-n run without them, with prompt lookup and with STAND, interleaved.

Every configuration is run in turn, round after round, and compared within its round, so that a machine whose speed
drifts cannot favour anyone. Prints a line for each configuration and ends with one JSON line.

    python benchmarks/drafts.py                                          # pebble, 8 samples of 18 problems
    python benchmarks/drafts.py --batch-size 1 --methods 'stand(nodes=8)'
    python benchmarks/drafts.py --model FOLDER --problems 6 --methods 'stand(nodes=80)'
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch

from thrifty.methods import get_method
from thrifty.models import load_model
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.spec import split_specs
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem


def measure(model: TorchModel, spec: str, problems: list[Problem], settings: Settings) -> dict[str, Any]:
    """Answer the problems; return what it took, and the chosen responses by problem."""
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    hook = model.network.register_forward_hook(count)
    wall, cpu = time.perf_counter(), time.process_time()
    traces = list(get_method(spec).solve(model, jobs_for(problems, 1), settings))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    hook.remove()
    return {
        "tokens": sum(t.usage.generated for t in traces),
        "passes": passes,
        # of every row for itself, of which a pass takes as many as are in the batch
        "tokens_per_pass": sum(t.usage.generated for t in traces) / sum(t.usage.forward_passes for t in traces),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "responses": {t.problem_id: t.text for t in traces},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--task", default="mix")
    parser.add_argument("--problems", type=int, default=18)
    parser.add_argument("--samples", type=int, default=8, help="responses to each problem")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", default="prompt-lookup,stand", help="that draft, with commas between")
    args = parser.parse_args()
    model = load_model(args.model)
    assert isinstance(model, TorchModel)
    problems = list(load_task(args.task).problems(limit=args.problems, seed=7))
    settings = Settings(max_tokens=args.max_tokens, batch_size=args.batch_size, temperature=args.temperature)
    base = f"best-of-n(samples={args.samples})"
    specs = {"no drafts": base} | {name: f"{base}+{name}" for name in split_specs(args.methods)}
    for spec in specs.values():  # warm-up: kernels, allocator, token texts
        measure(model, spec, problems[:1], settings.with_(max_tokens=32))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in specs}
    for number in range(args.rounds):
        for name in specs if number % 2 == 0 else reversed(specs):
            rounds[name].append(measure(model, specs[name], problems, settings))
    result: dict[str, Any] = {"benchmark": "drafts", "device": str(model.device), "threads": torch.get_num_threads()}
    result |= {"machine": platform.machine(), **vars(args), "configurations": {}}
    for name, runs in rounds.items():
        found: dict[str, Any] = {
            key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0] if key != "responses"
        }
        for key, label in (("passes", "fewer_passes"), ("cpu_seconds", "less_cpu"), ("wall_seconds", "less_wall")):
            ratios = [plain[key] / run[key] for plain, run in zip(rounds["no drafts"], runs, strict=True)]
            found[label] = round(statistics.median(ratios), 3)
        plain, mine = rounds["no drafts"][0]["responses"], runs[0]["responses"]
        found["same_responses"] = sum(plain[key] == text for key, text in mine.items())
        result["configurations"][name] = found
        print(
            f"{name:<28}{found['tokens']:>8.0f} tokens {found['passes']:>7.0f} passes "
            f"({found['fewer_passes']:.2f}x fewer) "
            f"{found['tokens_per_pass']:.2f} a pass  {found['cpu_seconds']:.1f} s CPU ({found['less_cpu']:.2f}x) "
            f"{found['wall_seconds']:.1f} s wall ({found['less_wall']:.2f}x)  "
            f"{found['same_responses']} of {len(mine)} the same"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
