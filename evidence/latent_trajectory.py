"""Measure how well the hidden states' path tells right from wrong samples: ``python evidence/latent_trajectory.py``.

It draws samples of test problems and prints, as one JSON object, the AUROC of every signal and what each policy gives
at a threshold that is cross-validated by question.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from typing import Any

import torch

from thrifty.methods.control.latent_trajectory import (
    BASELINES,
    ORIENTATION,
    LatentTrajectory,
    area_under,
    labelled,
    note_of,
    oriented,
)
from thrifty.methods.shared.acceptance import Answers, Scores, cross_validate, play
from thrifty.methods.tuning import Tuning
from thrifty.models import load_model
from thrifty.models.base import Settings
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.selection import shortest
from thrifty.traces.trace import Trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--task", default="mix")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--window", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    model, task = load_model(args.model), load_task(args.task)
    assert isinstance(model, TorchModel)
    settings = Settings(temperature=args.temperature, seed=args.seed, batch_size=64)
    tuning = Tuning("latent-trajectory", model, task, settings, args.limit, progress=show)
    method = LatentTrajectory(samples=1, window=args.window, baselines=True)
    groups = tuning.solve(method, list(task.problems(args.limit, args.seed)), args.samples)
    print(json.dumps({"slug": method.slug, **vars(args), **compare(groups)}, indent=1))


def show(what: str, done: int, total: int, tokens: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"{what}: {done}/{total}, {tokens} tokens", file=sys.stderr, flush=True)


def compare(groups: list[list[Trace]]) -> dict[str, Any]:
    """Return the AUROC of every signal with its correlation with length, and accuracy and cost of every policy."""
    signals = {}
    for name in (*ORIENTATION, *BASELINES):
        notes = [note_of(trace) for group in groups for trace in group]
        pairs = [(score, note["length"]) for note in notes if (score := oriented(note, name)) is not None]
        alike = torch.corrcoef(torch.tensor(pairs, dtype=torch.float64).T)[0, 1]
        area = area_under(labelled(groups, name))
        signals[name] = {"n": len(pairs), "auroc": area, "correlation_with_length": round(float(alike), 4)}
    lengths = labelled(groups, "length")
    policies = {
        "single sample": play(lengths, -math.inf),
        "majority": play(lengths, math.inf),
        "shortest": play(lengths, math.inf, choose_shortest),
        **{name: cross_validate(labelled(groups, name)) for name in ORIENTATION},
    }
    return {"signals": signals, "policies": {name: asdict(played) for name, played in policies.items()}}


def choose_shortest(scores: Scores, answers: Answers, _: float) -> tuple[int | None, int]:
    """Return the shortest sample with an answer, for which all are drawn; scores are lengths with a minus."""
    return shortest([-(score or 0.0) for score in scores], answers), len(scores)


if __name__ == "__main__":
    main()
