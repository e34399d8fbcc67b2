"""What leg_counting teaches: every route and program reaches the answer, and a slip spoils its own piece only."""

from __future__ import annotations

import random

import pytest

from arithmetic import Scratch
from families.leg_counting import lesson


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


@pytest.mark.parametrize(
    ("animals", "text"),
    [
        (
            {"dog": 13, "snake": 1},
            "13 dogs, 4 legs: 3*4=12, 1*4+1=5 -> 52\n1 snake, 0 legs: 1*0=0 -> 0\n52+0: 2+0=2, 5+0=5 -> 52\n",
        ),
        ({"crab": 12}, "12 crabs, 10 legs: 2*1=2, 1*1=1 -> 120\n"),
    ],
)
def test_lines_by_hand(animals: dict[str, int], text: str) -> None:
    one = lesson({"question": "", "answer": "", "metadata": {"animals": animals}})
    page = Scratch(random.Random(0))
    one.routes[0][1](page)
    assert text_of(page) == text
