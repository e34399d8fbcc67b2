"""The verifier's training: labels are shares of right continuations, numbers mean what they say, runs resume."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import verifier
from thrifty.decoding.verifier import Verifier
from thrifty.models.torch import TorchModel
from thrifty.tasks.mix import MixTask


def test_calibration_error_and_ranking_by_hand() -> None:
    scores = torch.tensor([0.1, 0.1, 0.9, 0.9])
    labels = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert verifier.expected_calibration_error(scores, labels) == pytest.approx(0.25)
    assert verifier.weighted_auroc(scores, labels) == pytest.approx((2 + 0.5) / 3)
    # half a right one, above a wrong one and beside half a wrong one
    halves = verifier.weighted_auroc(torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.0]))
    assert halves == pytest.approx((1 + 0.5 / 2) / 1.5)
    assert verifier.weighted_auroc(scores, torch.ones(4)) is None
    # the first problem is ranked rightly and the second wrongly; the third always ends right and says nothing
    scores, labels = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.5, 0.5]), torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    assert verifier.auroc_within(scores, labels, torch.tensor([7, 7, 8, 8, 9, 9])) == pytest.approx(0.5)


def arguments(tmp_path: Path, **changes: Any) -> argparse.Namespace:
    values = {
        "model": "pebble",
        "out": str(tmp_path / "out"),
        "work": str(tmp_path / "work"),
        "problems": 15,
        "cuts": 2,
        "continuations": 2,
        "temperature": 0.9,
        "max_tokens": 96,
        "layers": [3],
        "width": 8,
        "epochs": 3,
        "batch_size": 32,
        "chunk": 5,
        "seed": 0,
    }
    return argparse.Namespace(**{**values, **changes})


def test_labels_are_shares_of_the_continuations_that_end_right(pebble: TorchModel, tmp_path: Path) -> None:
    args = arguments(tmp_path)
    task = MixTask("easy")
    numbered = list(enumerate(task.problems(4, verifier.SEED_BASE, "train")))
    examples = verifier.roll_out(pebble, task, numbered, args)
    count = len(examples["label"])
    assert examples["states.3"].shape == (count, pebble.hidden_size)
    # two cuts into two: first child cut again, so that leaves weigh 1/4, 1/4 and 1/2
    assert {float(label) for label in examples["label"]} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert set(examples["problem"].tolist()) == {0, 1, 2, 3}
    place = examples["place"]
    assert bool(((place > 0) & (place <= 1)).all())
    assert int((place == 1).sum()) >= 4, "the ends of responses are among them"
    again = verifier.roll_out(pebble, task, numbered, args)
    assert all(torch.equal(examples[name], again[name]) for name in examples)


def test_a_label_of_a_branch_counts_each_continuation_the_same() -> None:
    def end(right: float) -> verifier.Branch:
        row: Any = object()  # only its identity matters here
        outcome[id(row)] = right
        rows.append(row)
        return verifier.Branch(row, verifier.Notes(0))

    outcome: dict[int, float] = {}
    rows: list[Any] = []
    cut_again = end(0.0)
    cut_again.children = [end(1.0), end(0.0)]
    first = end(0.0)
    first.children = [cut_again, end(1.0), end(1.0), end(0.0)]
    assert verifier.label(first, outcome) == pytest.approx((0.5 + 1 + 1 + 0) / 4)
    assert verifier.label(cut_again, outcome) == 0.5
    assert len(first.ends()) == 5


def test_a_killed_run_goes_on_from_the_rollouts_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verifier.py", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--problems", "15"]
    command += ["--max-tokens", "96", "--continuations", "2", "--layers", "3", "4", "--epochs", "3", "--chunk", "5"]
    monkeypatch.setattr(sys, "argv", command)
    verifier.main()
    whole = Verifier.load(str(tmp_path / "out"))
    assert whole.layer in (3, 4)
    assert 0 <= whole.calibration["ece"] <= 1
    assert set(whole.calibration["auroc_by_place"]) == set(verifier.QUARTERS)
    parts = sorted((tmp_path / "work").rglob("*.safetensors"))
    assert len(parts) == 3
    parts[1].unlink()
    kept = parts[0].stat().st_mtime_ns
    capsys.readouterr()
    verifier.main()
    assert parts[0].stat().st_mtime_ns == kept
    assert Verifier.load(str(tmp_path / "out")).calibration == whole.calibration
    assert all(
        torch.equal(tensor, whole.gate.tensors[name])
        for name, tensor in Verifier.load(str(tmp_path / "out")).gate.tensors.items()
    )
