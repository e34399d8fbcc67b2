"""Train the process verifier of a pebble: ``python pebbles/verifier.py --model pebble --out FOLDER``.

Rollouts: the model answers problems of the train split. Some rollouts are cut at the end of a line and gone on from
several times, from the cache that was kept. A state at the end of a line, a paragraph or the response is labelled with
the share of its continuations that end right: a Monte Carlo estimate before a cut, the plain outcome behind the last.
Head: a small network on those states, one for each tapped layer; the best one on validation problems is kept.

The run is a function of its arguments: kill it anywhere, start it again with the same arguments, and it goes on from
the rollouts that it has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from thrifty.decoding.artefact import identity
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.flow import Call, Flow, conclude, run_flows
from thrifty.decoding.gate import Gate
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import uniforms
from thrifty.decoding.verifier import CLASSES, Verifier
from thrifty.models import load_model
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.tasks.mix import LEVELS, MixTask
from thrifty.traces.trace import Problem

SEED_BASE = 1800
"""Problems of seeds that nothing else uses."""
STREAM = 4
"""Cuts are drawn from a stream of their own."""
LINES_TO_A_CUT = 6
"""At the most, drawn evenly."""
FOLDS = 5
"""Of the problems, one in so many is held out for the report, and one to choose on."""
QUARTERS = ("first", "second", "third", "last", "end")

Examples = dict[str, Tensor]
"""``states.LAYER`` float16 ``(n, hidden)``; ``label`` and ``place`` float32 ``(n,)``: the share of continuations that
end right, and the share of the response that is written; ``problem`` int64 ``(n,)``."""


class Collect(Controller):
    """Note the states at the ends of lines and of the response; cut a row after some lines if its call may be cut."""

    def __init__(self, layers: Sequence[int], cut: bool) -> None:
        self.taps, self.cut = tuple(layers), cut

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        keys = np.array([row.key for row in rows], dtype=np.uint64)
        counters = np.array([len(row.ids) for row in rows], dtype=np.uint64)
        for row, draw in zip(rows, uniforms(keys, counters, STREAM), strict=True):
            row.state[self] = Notes(lines=1 + int(draw * LINES_TO_A_CUT))

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            notes: Notes = row.state[self]
            notes.lines -= row.line_ended
            if self.cut and row.line_ended and not notes.lines and row.thinking and not row.forced:
                row.stop("cut")

    def see_hidden(self, rows: Sequence[Row], hidden: Mapping[int, Tensor]) -> None:
        for i, row in enumerate(rows):
            if len(row.ids) > row.inherited and (row.line_ended or row.stopped):
                row.state[self].add(len(row.ids), {layer: hidden[layer][i].half().cpu() for layer in self.taps})


@dataclass
class Notes:
    """What was seen of a row: after how many lines it is to be cut, and its states by the tokens written."""

    lines: int
    tokens: list[int] = field(default_factory=list)
    states: list[dict[int, Tensor]] = field(default_factory=list)

    def add(self, tokens: int, states: dict[int, Tensor]) -> None:
        self.tokens.append(tokens)
        self.states.append(states)


@dataclass
class Branch:
    """A part of a rollout, and what went on from its end."""

    row: Row
    notes: Notes
    children: list[Branch] = field(default_factory=list)

    def ends(self) -> list[Row]:
        """The finished rows behind it."""
        return [self.row] if not self.children else [row for child in self.children for row in child.ends()]


def read_off(branch: Branch, right: Mapping[int, float]) -> Iterator[tuple[dict[int, Tensor], float, float]]:
    """Yield the states of a branch and of those behind it, each with its label and its place.

    Args:
        branch: which.
        right: 1 for each finished row, by its identity, that ends right, else 0.
    """
    length = sum(len(row.ids) for row in branch.ends()) / len(branch.ends())
    value = label(branch, right)
    for tokens, states in zip(branch.notes.tokens, branch.notes.states, strict=True):
        yield states, value, min(1.0, tokens / length)
    for child in branch.children:
        yield from read_off(child, right)


def label(branch: Branch, right: Mapping[int, float]) -> float:
    """Return the share of the continuations from a branch's end that end right."""
    if not branch.children:
        return right[id(branch.row)]
    return sum(label(child, right) for child in branch.children) / len(branch.children)


def roll_out(
    model: TorchModel, task: MixTask, numbered: Sequence[tuple[int, Problem]], args: argparse.Namespace
) -> Examples:
    """Return the examples of some problems; see the module's docstring."""
    numbers = {problem.id: number for number, problem in numbered}
    found: list[tuple[int, dict[int, Tensor], float, float]] = []
    whole, cuttable = (Collect(args.layers, cut) for cut in (False, True))
    settings = Settings(
        max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed, batch_size=args.batch_size
    )

    def flow(job: Job) -> Flow:
        prompt = model.render(job.problem.messages)
        (row,) = yield [Call(prompt, [cuttable], keep=True)]
        rows, first = [row], Branch(row, row.state[cuttable])
        newest = first
        for cut in range(args.cuts):
            if newest.row.stopped != "cut":
                break
            # the first continuation may be cut in its turn
            steering = [cuttable if cut + 1 < args.cuts else whole, *[whole] * (args.continuations - 1)]
            grown = yield [Call(controllers=[c], parent=newest.row, keep=True) for c in steering]
            newest.row.kept = None
            newest.children = [Branch(row, row.state[c]) for row, c in zip(grown, steering, strict=True)]
            newest = newest.children[0]
            rows += grown
        right = {}
        for end in first.ends():
            end.kept = None
            answered = end.trace("")
            answer = task.extract(job.problem, answered.answer_text) if answered.closed_by else None
            right[id(end)] = float(task.score(job.problem, answer) >= 1)
        found.extend((numbers[job.problem.id], *example) for example in read_off(first, right))
        return conclude(rows[-1], "rollout", [(row, "sample") for row in rows[:-1]])

    tokens = 0
    for trace in run_flows(model, [Job(problem) for _, problem in numbered], settings, flow):
        tokens += trace.usage.generated
    found.sort(key=lambda example: example[0])
    examples = {f"states.{layer}": torch.stack([states[layer] for _, states, _, _ in found]) for layer in args.layers}
    examples["problem"] = torch.tensor([number for number, _, _, _ in found])
    examples["label"] = torch.tensor([value for _, _, value, _ in found])
    examples["place"] = torch.tensor([place for _, _, _, place in found])
    examples["tokens"] = torch.tensor([tokens])
    return examples


def examples_of(model: TorchModel, args: argparse.Namespace) -> Examples:
    """Return the examples of all problems, those from earlier runs with the same arguments read from ``args.work``."""
    tasks = {level: MixTask(level) for level in LEVELS}
    sources = {level: task.problems(None, SEED_BASE + args.seed, "train") for level, task in tasks.items()}
    seen: set[str] = set()
    numbered: dict[str, list[tuple[int, Problem]]] = {level: [] for level in LEVELS}
    for number in range(args.problems):
        level = list(LEVELS)[number % len(LEVELS)]  # levels share questions
        problem = next(p for p in sources[level] if p.question not in seen)
        seen.add(problem.question)
        numbered[level].append((number, problem))
    asked = (args.seed, args.cuts, args.continuations, args.temperature, args.max_tokens, args.layers)
    key = hashlib.sha256(json.dumps([identity(model)["weights"], asked]).encode()).hexdigest()[:12]
    parts, fresh, started = [], 0, time.time()
    for level, mine in numbered.items():
        for start in range(0, len(mine), args.chunk):
            some = mine[start : start + args.chunk]
            path = Path(args.work) / key / f"{level}-{start}-{len(some)}.safetensors"
            if not path.exists():
                examples = roll_out(model, tasks[level], some, args)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(examples, path.with_suffix(".part"))
                path.with_suffix(".part").replace(path)
                fresh += int(examples["tokens"])
            parts.append(load_file(path))
            done = {"rollouts": sum(len(p["label"]) for p in parts), "mean_label": round(mean_label(parts), 4)}
            seconds = time.time() - started
            print(json.dumps({"level": level, **done, "tokens": fresh, "seconds": round(seconds, 1)}), flush=True)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def mean_label(parts: Sequence[Examples]) -> float:
    return float(torch.cat([part["label"] for part in parts]).mean())


def fit(states: Tensor, labels: Tensor, checked: Tensor, wanted: Tensor, layer: int, args: argparse.Namespace) -> Gate:
    """Train a head, and keep it as it was when the validation loss was lowest.

    Args:
        states: to train on, float32 ``(n, hidden)``.
        labels: probability of right, float32 ``(n,)``.
        checked: to validate on.
        wanted: their labels.
        layer: of the model whose states they are.
        args: the run's.
    """
    torch.manual_seed(args.seed)
    mean, scale = states.mean(0), states.std(0).clamp(min=1e-6)
    head = torch.nn.Sequential(
        torch.nn.Linear(states.shape[1], args.width), torch.nn.ReLU(), torch.nn.Linear(args.width, 1)
    )
    states, checked = (states - mean) / scale, (checked - mean) / scale
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.05)
    best: dict[str, Tensor] = {}
    lowest, stale = float("inf"), 0
    for _ in range(args.epochs):
        order = torch.randperm(len(states))
        for start in range(0, len(order), 256):
            batch = order[start : start + 256]
            loss = F.binary_cross_entropy_with_logits(head(states[batch])[:, 0], labels[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
        with torch.no_grad():
            now = float(F.binary_cross_entropy_with_logits(head(checked)[:, 0], wanted))
        stale += 1
        if now < lowest:
            lowest, stale = now, 0
            best = {name: value.clone() for name, value in head.state_dict().items()}
        if stale == 5:
            break
    # the softmax over (0, x) is the sigmoid of x
    output = torch.cat([torch.zeros_like(best["2.weight"]), best["2.weight"]])
    bias = torch.cat([torch.zeros_like(best["2.bias"]), best["2.bias"]])
    return Gate(CLASSES, layer, mean, scale, output, bias, best["0.weight"], best["0.bias"])


def expected_calibration_error(scores: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Return the mean distance between score and label over bins of equal width, weighted by their sizes.

    Scores .1 .1 .9 .9 with labels 0 0 1 0 give .5 * .1 + .5 * .4 = .25.

    Args:
        scores: from 0 to 1 ``(n,)``.
        labels: from 0 to 1 ``(n,)``.
        bins: how many.
    """
    places = (scores * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, places, (scores - labels).double())
    return float(gaps.abs().sum() / len(scores))


def weighted_auroc(scores: Tensor, labels: Tensor) -> float | None:
    """Return the probability that a continuation that ends right stands behind a higher score than one that ends wrong.

    A label of .75 is three right continuations and a wrong one; ties count half. None without either.

    Args:
        scores: ``(n,)``.
        labels: shares of right continuations, from 0 to 1 ``(n,)``.
    """
    values, place = torch.unique(scores, return_inverse=True)
    right = torch.zeros(len(values), dtype=torch.float64).index_add(0, place, labels.double())
    wrong = torch.zeros(len(values), dtype=torch.float64).index_add(0, place, 1 - labels.double())
    below = wrong.cumsum(0) - wrong / 2
    mass = float(right.sum() * wrong.sum())
    return float((right * below).sum()) / mass if mass > 0 else None


def auroc_within(scores: Tensor, labels: Tensor, groups: Tensor) -> float | None:
    """Return the mean `weighted_auroc` of the problems that end both ways: what a search over one problem can use.

    Args:
        scores: ``(n,)``.
        labels: shares of right continuations ``(n,)``.
        groups: the problem of each ``(n,)``.
    """
    parts = [weighted_auroc(scores[groups == group], labels[groups == group]) for group in sorted(set(groups.tolist()))]
    known = [part for part in parts if part is not None]
    return sum(known) / len(known) if known else None


def report(scores: Tensor, labels: Tensor, places: Tensor, groups: Tensor) -> dict[str, Any]:
    """Return what a verifier is worth on held-out problems: overall, by how much of the response is written, and
    within problems."""
    quarter = torch.where(places < 1, (places * 4).long(), 4)
    areas = {name: weighted_auroc(scores[quarter == i], labels[quarter == i]) for i, name in enumerate(QUARTERS)}
    return {
        "examples": len(labels),
        "mean_label": round(float(labels.mean()), 4),
        "ece": round(expected_calibration_error(scores, labels), 4),
        "auroc": _rounded(weighted_auroc(scores, labels)),
        "auroc_by_place": {name: _rounded(area) for name, area in areas.items()},
        "auroc_within_problems": _rounded(auroc_within(scores, labels, groups)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def train(model: TorchModel, args: argparse.Namespace) -> Verifier:
    """Roll out, train a head for each layer, and return the verifier with the best one; see the module's docstring."""
    examples = examples_of(model, args)
    fold = examples["problem"] // len(LEVELS) % FOLDS
    learned, checked, held_out = fold > 1, fold == 1, fold == 0
    labels = examples["label"]
    candidates = []
    for layer in args.layers:
        states = examples[f"states.{layer}"].float()
        gate = fit(states[learned], labels[learned], states[checked], labels[checked], layer, args)
        loss = F.binary_cross_entropy(gate.probabilities(states[checked])[:, 1], labels[checked])
        candidates.append((float(loss), layer, gate))
        print(json.dumps({"layer": layer, "validation_loss": round(float(loss), 4)}), flush=True)
    _, layer, gate = min(candidates, key=lambda candidate: candidate[:2])
    scores = gate.probabilities(examples[f"states.{layer}"][held_out])[:, 1]
    measured = report(scores, labels[held_out], examples["place"][held_out], examples["problem"][held_out])
    # where things lie, and how they are batched
    aside = ("model", "out", "work", "batch_size", "chunk")
    made_with = {name: value for name, value in vars(args).items() if name not in aside}
    return Verifier.of(model, gate, {"held_out_problems": args.problems // FOLDS, **measured}, made_with)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pebble", help="the pebble: its name or folder")
    parser.add_argument("--out", required=True, help="folder for verifier.json and verifier.safetensors")
    parser.add_argument("--work", default="runs/verifier", help="folder for the rollouts")
    parser.add_argument("--problems", type=int, default=600, help="of all levels together")
    parser.add_argument("--cuts", type=int, default=2, help="of a rollout, at the most")
    parser.add_argument("--continuations", type=int, default=4, help="of each cut")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, nargs="+", help="to choose from; the last two if not given")
    parser.add_argument("--width", type=int, default=64, help="of the head")
    parser.add_argument("--epochs", type=int, default=40, help="at the most")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=50, help="problems between two saves")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = load_model(args.model)
    if not isinstance(model, TorchModel):
        parser.error(f"{args.model!r} is not a local model: give a pebble's name or folder")
    args.layers = args.layers or [model.layers - 1, model.layers]
    verifier = train(model, args)
    verifier.save(args.out)
    print(json.dumps({"layer": verifier.layer, **verifier.calibration}))


if __name__ == "__main__":
    main()
