"""Lessons on counting letters: every route and check, with and without slips."""

from __future__ import annotations

import random

from arithmetic import Scratch
from families.letter_counting import lesson


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


def test_routes_by_hand() -> None:
    span = ["Smith", "sees", "2889"]
    item = {"question": "?", "answer": "3", "metadata": {"span": span, "target_letter": "s"}}
    texts = []
    for _, route in lesson(item).routes:
        page = Scratch(random.Random(0))
        assert route(page) == 3
        texts.append(text_of(page))
    assert texts == [
        "- Smith: s=1 m i t h\n- sees: s=2 e e s=3\n- 2889: 2 8 8 9\n",
        "- 2889: 2 8 8 9\n- sees: s=1 e e s=2\n- Smith: s=3 m i t h\n",
        "- Smith: s=1 m i t h\n- sees: s=1 e e s=2\n- 2889: 2 8 8 9\n1+2=3\n",
    ]
    page = Scratch(random.Random(0))
    assert lesson(item).checks[0][1](page, "3")
    assert text_of(page) == "- Smith 1, 0+1=1\n- sees 2, 1+2=3\n3=3\n"
