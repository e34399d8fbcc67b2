"""Lessons on linear equations: every route and check, with and without slips."""

from __future__ import annotations

import random
import re
from functools import cache

import pytest
import reasoning_gym

from arithmetic import Scratch
from families.simple_equations import lesson
from lesson import Lesson

LEVELS = {
    "easy": {"min_terms": 2, "max_terms": 2, "max_value": 10},
    "default": {"min_terms": 2, "max_terms": 3, "max_value": 20},
    "hard": {"min_terms": 3, "max_terms": 4, "max_value": 50},
}


@cache
def lessons(level: str, size: int = 300) -> list[Lesson]:
    source = reasoning_gym.create_dataset("simple_equations", seed=11, size=size, **LEVELS[level])
    return [lesson(item) for item in source]


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


@pytest.mark.parametrize("level", LEVELS)
def test_every_elementary_result_is_true(level: str) -> None:
    for one in lessons(level):
        for _, route in one.routes:
            page = Scratch(random.Random(0))
            route(page)
            for left, right in re.findall(r"(?<![\d*+/-])(\d+(?:[*+-]\d+)+)=(\d+)(?![\d*])", text_of(page)):
                assert eval(left) == int(right), text_of(page)
            for larger, smaller in re.findall(r"(\d+)>(\d+)", text_of(page)):
                assert int(larger) > int(smaller)


def written(equation: str, answer: int) -> str:
    item = {"question": equation, "answer": str(answer), "metadata": {"equation": equation, "variable": "x"}}
    page = Scratch(random.Random(0))
    assert lesson(item).routes[0][1](page) == answer
    return text_of(page)


@pytest.mark.parametrize(
    ("equation", "answer", "text"),
    [
        ("8*x - 9 = 23", 4, "8*x=23+9: 3+9=12, 2+0+1=3 -> 32\n32/8=4\nx=4\n"),
        ("12 - 8*x = -20", 4, "8*x=12+20: 2+0=2, 1+2=3 -> 32\n32/8=4\nx=4\n"),
        ("-3*x - 15 = -27", 4, "3*x=-15+27=27-15: 7-5=2, 2-1=1 -> 12\n12/3=4\nx=4\n"),
        ("5*x = 15", 3, "5*x=15\n15/5=3\nx=3\n"),
        ("7 - x = 0", 7, "x=7\nx=7\n"),
        ("-5*x = -15", 3, "5*x=15\n15/5=3\nx=3\n"),
        ("69*x = 690", 10, "69*x=690\n690/69: 69/69=1, 69*10: 9*1=9, 6*1=6 -> 690\nx=10\n"),
        (
            "44*x = 1716",
            39,
            "44*x=1716\n1716/44: 17/4=4, 44*40: 4*4=16, 4*4+1=17 -> 1760\n1760>1716, 44*30: 4*3=12, 4*3+1=13 -> 1320\n"
            "1716-1320: 6-0=6, 11-2=9, 7-3-1=3, 1-1=0 -> 396\n396/44: 39/4=9, 44*9: 4*9=36, 4*9+3=39 -> 396\n"
            "30+9=39\nx=39\n",
        ),
    ],
)
def test_routes_by_hand(equation: str, answer: int, text: str) -> None:
    assert written(equation, answer) == text


def test_an_equation_whose_terms_cancelled_is_no_lesson() -> None:
    item = {"question": "Solve for v: 0 = 0", "answer": "23", "metadata": {"equation": "0 = 0", "variable": "v"}}
    assert lesson(item).routes == []
