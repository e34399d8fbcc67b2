"""The word problems: every template has a recipe, its working reaches the answer, and a slip never breaks it."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import reasoning_gym
from hypothesis import given, settings
from hypothesis import strategies as st

from arithmetic import Scratch
from families import gsm_symbolic
from lesson import Lesson

SIZE = 400


@cache
def lessons() -> list[tuple[dict[str, Any], Lesson]]:
    items = reasoning_gym.create_dataset("gsm_symbolic", seed=11, size=SIZE)
    return [(item, gsm_symbolic.lesson(item)) for item in items]


def written(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


def well_formed(text: str) -> bool:
    return text.endswith("\n") and "\n\n" not in text and not text.startswith("\n") and "So the answer is" not in text


def test_almost_every_problem_has_a_recipe() -> None:
    assert sum(len(lesson.routes) == 2 for _, lesson in lessons()) >= 0.99 * SIZE


def test_a_problem_that_no_recipe_fits_is_left_out() -> None:
    metadata = {"variables": {"apples": 3}, "answer_cot": "There are 3 + 4.5 = 7.5.\n\n#### 7.5"}
    assert gsm_symbolic.lesson({"question": "How many?", "answer": "7.5", "metadata": metadata}).routes == []


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 2000))
def test_divide(a: int, b: int) -> None:
    page = Scratch(random.Random(0))
    assert page.divide(a, b) == a // b
    assert written(page).endswith(f"-> {a // b}\n")
    for slip_at in range(page.results):
        slipped = Scratch(random.Random(slip_at), slip_at=slip_at)
        slipped.divide(a, b)
        assert [target for _, target in slipped.pieces].count(False) == 1
        assert well_formed(written(slipped))


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (84, 7, "8/7=1 r 1, 14/7=2 r 0 -> 12\n"),
        (3, 7, "3/7 -> 0\n"),
        (135, 15, "135/15=9, 15*9: 5*9=45, 1*9+4=13 -> 135\n135/15 -> 9\n"),
    ],
)
def test_divide_is_written_out(a: int, b: int, text: str) -> None:
    page = Scratch(random.Random(0))
    page.divide(a, b)
    assert written(page) == text
