"""Choosing one of several answers: votes by equality classes, early agreement, shortest, best."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.errors import ThriftyError
from thrifty.traces.selection import argbest, classes, shortest, still_needed, tally, vote

ALIKE = {"half": ("1/2", "0.5", r"\frac{1}{2}", "50%"), "three": ("3", "3.0", "x = 3"), "paris": ("Paris", "paris.")}
answer = st.sampled_from([text for texts in ALIKE.values() for text in texts]) | st.none()
answers = st.lists(answer, max_size=9)


def name(text: str | None) -> str | None:
    return next((key for key, texts in ALIKE.items() if text in texts), None)


def test_classes_join_what_is_mathematically_the_same() -> None:
    assert classes(["1/2", None, "3", "0.5"]) == [0, None, 2, 0]
    assert classes(["x+1", "1+x", "x+2"]) == [0, 0, 2]
    assert classes(["A", "(A)"], kind="choice") == [0, 0]


def test_vote_on_worked_numbers() -> None:
    assert vote(["A", "B", "A", "C", "A"]) == 0
    assert vote(["7", "0.5", None, "1/2"]) == 1
    assert vote(["7", "8"]) == 0
    assert vote(["7", "8", "8"], [2.0, 0.5, 1.0]) == 0
    assert vote(["7", "8", "8"], [2.0, 1.5, 1.0]) == 1
    assert vote([None, None]) is None
    assert vote([]) is None
    assert tally(["7", "8", "7.0"], [1.0, 2.0, 0.25]) == {0: 1.25, 1: 2.0}


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ThriftyError, match="2 answers"):
        vote(["1", "2"], weights)


@given(answers)
def test_the_winner_has_the_most_votes_and_stands_first_among_equals(given: list[str | None]) -> None:
    chosen = vote(given)
    names = [name(a) for a in given]
    if chosen is None:
        assert set(names) <= {None}
        return
    mine = names.count(names[chosen])
    assert all(names.count(other) <= mine for other in set(names) - {None})
    assert all(names.count(other) < mine for other in names[:chosen] if other is not None)


@given(answers, st.randoms())
def test_the_winning_class_depends_on_the_order_only_in_a_tie(given: list[str | None], random: object) -> None:
    shuffled = list(given)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis types its Random as an object
    votes = sorted(tally(given).values())
    assert sorted(tally(shuffled).values()) == votes
    if votes and votes.count(votes[-1]) == 1:
        a, b = vote(given), vote(shuffled)
        assert a is not None
        assert b is not None
        assert name(given[a]) == name(shuffled[b])


def settled(given: list[str | None], remaining: int) -> bool:
    """By brute force over all continuations, with answers that nobody has given yet among them."""
    new = [f"new {i}" for i in range(remaining)]
    return len({vote([*given, *more]) for more in itertools.product([*given, *new, None], repeat=remaining)}) <= 1


@given(st.lists(st.sampled_from(["1", "2", "3", None]), max_size=4), st.integers(0, 3))
def test_still_needed_is_the_fewest_that_can_settle_the_vote(given: list[str | None], remaining: int) -> None:
    needed = still_needed(given, remaining)
    for count in range(remaining + 1):
        could = any(
            settled([*given, *more], remaining - count)
            for more in itertools.product(["1", "2", "3", "4", None], repeat=count)
        )
        assert could == (count >= needed)


def test_still_needed_on_worked_numbers() -> None:
    assert still_needed([], 5) == 3
    assert still_needed([], 4) == 2  # the first class wins a tie
    assert still_needed(["A", "A", "B"], 2) == 1
    assert still_needed(["A", "A", "B"], 1) == 0
    assert still_needed(["B", "A", "A"], 1) == 1
    assert still_needed([None, None], 0) == 0


def test_shortest_and_argbest() -> None:
    assert shortest([5, 3, 3]) == 1
    assert shortest([5, 3, 4], ["a", None, "b"]) == 2
    assert shortest([5], [None]) is None
    assert argbest([0.1, 0.9, 0.9]) == 1
    assert argbest([None, math.nan, -5.0]) == 2
    assert argbest([-1.0, 0.0]) == 1
    assert argbest([None, math.nan]) is None


@given(st.lists(st.none() | st.floats(allow_nan=True), max_size=9))
def test_nothing_beats_the_best(scores: list[float | None]) -> None:
    best = argbest(scores)
    real = [s for s in scores if s is not None and not math.isnan(s)]
    assert (best is None) == (not real)
    if best is not None:
        assert scores[best] == max(real)
        assert scores.index(scores[best]) == best
