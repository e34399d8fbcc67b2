"""What chain_sum teaches: every route and program reaches the answer, and a slip spoils its own piece only."""

from __future__ import annotations

import random

import pytest

from arithmetic import Scratch
from families.chain_sum import lesson


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("5 - 12 + 3", "5-12=-(12-5): 12-5=7, 1-0-1=0 -> -7\n-7+3=-(7-3): 7-3=4 -> -4\n"),
        ("4 - 0 - 4", "4-0: 4-0=4 -> 4\n4-4: 4-4=0 -> 0\n"),
        ("-5 - 7 - -20", "-5-7=-(5+7): 5+7=12 -> -12\n-12+20=20-12: 10-2=8, 2-1-1=0 -> 8\n"),
    ],
)
def test_lines_by_hand(expression: str, text: str) -> None:
    one = lesson({"question": "", "answer": "", "metadata": {"expression": expression}})
    page = Scratch(random.Random(0))
    one.routes[0][1](page)
    assert text_of(page) == text
