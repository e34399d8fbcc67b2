"""Splitting a budget: the card's worked numbers, and what holds for all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.methods.shared.allocation import SCHEDULES, allocate, bam_allocate, schedule_weights, uncertainty

positive = st.floats(0.1, 20)
questions = st.lists(st.tuples(positive, st.floats(1, 16)), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("schedule", "parts"),
    [
        ("constant", [225, 135, 90]),
        ("linear", [294, 117, 39]),
        ("polynomial", [344, 91, 15]),
        ("exponential", [242, 130, 78]),
        ("cosine", [330, 108, 12]),
    ],
)
def test_worked_numbers_of_the_card(schedule: str, parts: list[int]) -> None:
    assert allocate([50, 30, 20], 450, schedule) == parts


def test_schedules_of_the_card() -> None:
    assert schedule_weights("linear", 3) == [3, 2, 1]
    assert schedule_weights("polynomial", 3) == [9, 4, 1]
    assert [float(w) for w in schedule_weights("exponential", 3)] == pytest.approx([1, 0.9, 0.81])
    assert [float(w) for w in schedule_weights("cosine", 3)] == pytest.approx([1.1, 0.6, 0.1])
    assert all(schedule_weights(schedule, 1) == [1] for schedule in SCHEDULES)


def test_what_remains_goes_to_the_largest_the_first_of_equals_first() -> None:
    assert allocate([1, 1, 1], 100) == [34, 33, 33]
    assert allocate([1, 1, 1], 101) == [34, 34, 33]
    assert allocate([1, 2, 1], 99) == [25, 50, 24]


@given(
    st.lists(st.one_of(st.integers(0, 100), st.floats(0, 100)), min_size=1, max_size=7).filter(any),
    st.integers(0, 1000),
    st.sampled_from(SCHEDULES),
    st.integers(0, 3),
)
def test_the_parts_make_up_the_budget(credits: list[float], budget: int, schedule: str, at_least: int) -> None:
    parts = allocate(credits, budget, schedule, at_least)
    assert sum(parts) == budget
    assert min(parts) >= min(at_least, budget // len(parts))
    if not at_least:
        weights = schedule_weights(schedule, len(credits))
        total = sum(c * float(w) for c, w in zip(credits, weights, strict=True))
        for part, credit, weight in zip(parts, credits, weights, strict=True):
            assert abs(part - credit * float(weight) / total * budget) < 1 + 1e-6


@pytest.mark.parametrize("credits", [[], [0, 0], [3, -1]])
def test_unusable_credits_are_refused(credits: list[float]) -> None:
    with pytest.raises(ValueError, match="credits"):
        allocate(credits, 100)


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="no schedule 'quadratic'"):
        allocate([1, 2], 100, "quadratic")


def test_bam_worked_numbers_of_the_card() -> None:
    assert bam_allocate([4, 1], [1, 1], 300) == pytest.approx([200, 100])
    assert bam_allocate([4, 1], [1, 1], 300, exact=False) == pytest.approx([200, 100])
    assert bam_allocate([1, 1], [1, 2], 100, exact=False) == pytest.approx([44.25, 55.75], abs=0.005)
    assert bam_allocate([1, 1], [1, 2], 100) == pytest.approx([77.16, 22.84], abs=0.005)


def test_the_closed_form_favours_questions_of_middle_difficulty() -> None:
    eases = [1, 2, 4, 8, 16]
    parts = bam_allocate([1] * 5, eases, 1, exact=False)
    assert [part / parts[0] for part in parts] == pytest.approx([1, 1.260, 1.320, 1.260, 1.177], abs=5e-4)


@given(questions, st.floats(1, 1000))
def test_the_exact_split_leaves_no_more_uncertainty_than_the_closed_form(
    questions: list[tuple[float, float]], budget: float
) -> None:
    complexity, ease = (list(values) for values in zip(*questions, strict=True))
    exact, closed = (bam_allocate(complexity, ease, budget, exact) for exact in (True, False))
    assert sum(exact) == pytest.approx(budget)
    assert sum(closed) == pytest.approx(budget)
    assert uncertainty(complexity, ease, exact) <= uncertainty(complexity, ease, closed) * (1 + 1e-9)
    slopes = [c * beta / b ** (beta + 1) for c, beta, b in zip(complexity, ease, exact, strict=True)]
    assert slopes == pytest.approx([slopes[0]] * len(slopes), rel=1e-6)


@pytest.mark.parametrize("arguments", [([], [], 1), ([1], [1, 2], 1), ([0], [1], 1), ([1], [0], 1), ([1], [1], 0)])
def test_bam_refuses(arguments: tuple[list[float], list[float], float]) -> None:
    with pytest.raises(ValueError, match="bam_allocate"):
        bam_allocate(*arguments)


def test_weighted_budgets_beat_uniform_ones_where_questions_differ() -> None:
    """The card's fake reasoner, which settles a question with probability 1 - c / b."""
    complexity = [30.0, 5.0, 1.0]
    uniform = [100.0] * 3
    weighted = bam_allocate(complexity, [1] * 3, 300)
    assert uncertainty(complexity, [1] * 3, weighted) < uncertainty(complexity, [1] * 3, uniform)
