"""Tuning: train problems only, judged responses in order, fair splits, options in one line."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods import method_class, tunable_class
from thrifty.methods.control.vanilla import Vanilla
from thrifty.methods.tuning import LEAST, Tuning, divide, lines_of
from thrifty.models.base import Settings
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.tasks.splits import split_of


def tuning(model: TorchModel, limit: int = 12, **options: object) -> Tuning:
    task = load_task("rg:chain_sum(min_terms=2,max_terms=2,min_digits=1,max_digits=1)")
    return Tuning("cgrs", model, task, Settings(max_tokens=60, temperature=0.8), limit, options)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 3))
def test_parts_share_nothing_and_every_label_is_trained_on(labels: list[int], seed: int) -> None:
    parts = divide(labels, seed)
    assert sorted(i for part in parts for i in part) == list(range(len(labels)))
    assert {labels[i] for i in parts[0]} == set(labels)
    for label in set(labels):
        trained, validated, held_out = ([labels[i] for i in part].count(label) for part in parts)
        assert trained >= validated >= held_out - 1
    assert divide(labels, seed) == parts
    assert divide(len(labels), seed) == divide([0] * len(labels), seed)


def test_problems_are_of_the_train_split_and_enough(pebble: TorchModel) -> None:
    found = tuning(pebble).problems()
    assert len(found) == 12
    assert all(split_of(problem.question) == "train" for problem in found)
    assert found[:LEAST] == tuning(pebble, LEAST).problems()
    with pytest.raises(ThriftyError, match="too few"):
        tuning(pebble, LEAST - 1).problems()


def test_responses_are_judged_and_in_order(pebble: TorchModel) -> None:
    job = tuning(pebble)
    problems = job.problems()
    traces = job.solve(Vanilla(), problems, samples=2)
    assert [[(t.problem_id, t.sample) for t in its] for its in traces] == [[(p.id, 0), (p.id, 1)] for p in problems]
    for problem, its_traces in zip(problems, traces, strict=True):
        for trace in its_traces:
            assert trace.correct is (job.task.score(problem, trace.answer) >= 1.0)


@dataclass
class Choice:
    """Options of a tuning."""

    rate: float = 0.5
    count: int = 3


def test_options_are_read_and_checked(pebble: TorchModel) -> None:
    assert tuning(pebble, rate=1, count=4).read(Choice) == Choice(1.0, 4)
    with pytest.raises(ThriftyError, match="tuning 'cgrs' has no option 'rats'; it has: rate, count"):
        tuning(pebble, rats=1).read(Choice)
    with pytest.raises(ThriftyError, match="option 'count' of tuning 'cgrs' is a int"):
        tuning(pebble, count="many").read(Choice)


def test_layers_are_checked(toy: TorchModel) -> None:
    assert [tuning(toy).layer(wanted) for wanted in (-1, 0, 2)] == [2, 0, 2]
    with pytest.raises(ThriftyError, match="has no layer 3: 0 for the embeddings to 2"):
        tuning(toy).layer(3)


def test_what_can_be_tuned_is_found_through_the_registry(pebble: TorchModel) -> None:
    assert tunable_class("first-try") is method_class("first-try")
    with pytest.raises(UnknownName, match="nothing to tune") as refusal:
        tunable_class("cap")
    assert "first-try" in str(refusal.value)
    with pytest.raises(ThriftyError, match="nothing to tune"):
        method_class("cap").tune(tuning(pebble))


def test_reports_are_lines_for_people() -> None:
    report = {"labels": {"easy": 3, "hard": 0}, "warning": ["few", "fewer"], "area_under": None}
    assert list(lines_of(report)) == [
        "labels",
        "  easy: 3",
        "  hard: 0",
        "warning: few",
        "warning: fewer",
        "area under: -",
    ]
