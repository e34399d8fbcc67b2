"""What gcd teaches: every route and program reaches the answer, and a slip spoils its own piece only."""

from __future__ import annotations

import random

import pytest

from arithmetic import Scratch
from families.gcd import lesson


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([18, 11], "18, 11\n18: 9\n11-9: 11-9=2, 1-0-1=0 -> 2\n2: 1\n"),
        ([12, 20], "12, 20\nby 2: 6, 10\nby 4: 3, 5\n5-3: 5-3=2 -> 2\n2: 1\n1*4: 1*4=4 -> 4\n"),
        ([7, 7], "7, 7\n7-7: 7-7=0 -> 0\n"),
        ([1, 9], "1, 9\n"),
    ],
)
def test_lines_by_hand(numbers: list[int], text: str) -> None:
    one = lesson({"question": "", "answer": "", "metadata": {"numbers": numbers}})
    page = Scratch(random.Random(0))
    one.routes[0][1](page)
    assert text_of(page) == text
