"""What products teaches: every route and program reaches the answer, and a slip spoils its own piece only."""

from __future__ import annotations

import random

import pytest

from arithmetic import Scratch
from families.products import lesson


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("7 * 8", "7*8: 7*8=56 -> 56\n"),
        ("12 * 34", "12*4: 2*4=8, 1*4=4 -> 48\n12*30: 2*3=6, 1*3=3 -> 360\n48+360: 8+0=8, 4+6=10, 0+3+1=4 -> 408\n"),
    ],
)
def test_lines_by_hand(expression: str, text: str) -> None:
    one = lesson({"question": "", "answer": "", "metadata": {"expression": expression}})
    page = Scratch(random.Random(0))
    one.routes[0][1](page)
    assert text_of(page) == text
