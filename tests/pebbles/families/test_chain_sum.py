"""What chain_sum teaches: every route and program reaches the answer, and a slip spoils its own piece only."""

from __future__ import annotations

import contextlib
import io
import random
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import reasoning_gym

from arithmetic import Scratch
from families.chain_sum import lesson
from lesson import Lesson

LEVELS: dict[str, dict[str, Any]] = {
    "default": {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2},
    "hard": {"min_terms": 4, "max_terms": 6, "min_digits": 2, "max_digits": 3},
}
EQUATION = re.compile(r"(?<![\d*+-])(\d+)([+*-])(\d+)(?:([+-])(\d+))?=(\d+)(?=[,\s]|$)")


@cache
def lessons(level: str) -> list[Lesson]:
    source = reasoning_gym.create_dataset("chain_sum", seed=7, size=200, **LEVELS[level])
    return [lesson(item) for item in source]


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


def wrong_equations(text: str) -> list[str]:
    """Return the equations of two or three numbers in the text that do not hold."""
    wrong = []
    for match in EQUATION.finditer(text):
        a, b, c, value = (int(match[i] or 0) for i in (1, 3, 5, 6))
        true = {"+": a + b, "-": a - b, "*": a * b}[match[2]] + (-c if match[4] == "-" else c)
        if true != value:
            wrong.append(match[0])
    return wrong


def check_lines(text: str) -> None:
    assert text.endswith("\n")
    assert "" not in text[:-1].split("\n")
    assert "So the answer is" not in text
    assert text.isascii()
    for a, b in re.findall(r"(?<![\d-])(\d+)-(\d+): ", text):
        assert int(a) >= int(b)  # columns cannot subtract the larger number


@pytest.mark.parametrize("level", LEVELS)
def test_every_route_reaches_the_reference_answer(level: str) -> None:
    for one in lessons(level):
        for name, route in one.routes:
            page = Scratch(random.Random(0))
            assert (str(route(page)), name) == (one.answer, name), one.question
            check_lines(text_of(page))
            assert wrong_equations(text_of(page)) == []
            assert all(target for _, target in page.pieces)
    names = {name for one in lessons(level) for name, _ in one.routes}
    assert names == {"going left to right", "going from the end", "adding the pluses and the minuses"}


@pytest.mark.parametrize(("level", "mean", "most"), [("default", 60, 150), ("hard", 180, 330)])
def test_the_first_route_is_short(level: str, mean: int, most: int) -> None:
    lengths = []
    for one in lessons(level):
        page = Scratch(random.Random(0))
        one.routes[0][1](page)
        lengths.append(len(text_of(page)))
    assert sum(lengths) / len(lengths) <= mean
    assert max(lengths) <= most


def slip_everywhere(write: Callable[[Scratch], object]) -> tuple[int, int]:
    """Plant a slip at each result in turn; return how many were planted and how many changed what comes out."""
    clean = Scratch(random.Random(0))
    right, changed = write(clean), 0
    for place in range(clean.results):
        page = Scratch(random.Random(place), slip_at=place)
        changed += write(page) != right
        check_lines(text_of(page))
        first = next(i for i, (a, b) in enumerate(zip(page.pieces, clean.pieces, strict=False)) if a != b)
        assert [i for i, (_, target) in enumerate(page.pieces) if not target] == [first]
        assert len(wrong_equations(text_of(page))) <= 1  # what follows from the slip is right again
        assert len(text_of(page)) <= 2 * len(text_of(clean)) + 200
    return clean.results, changed


@pytest.mark.parametrize("level", LEVELS)
def test_every_slip_is_carried_on(level: str) -> None:
    planted = changed = 0
    for one in lessons(level)[:30]:
        for _, route in one.routes:
            results, different = slip_everywhere(route)
            planted, changed = planted + results, changed + different
    assert planted / 2 < changed < planted


@pytest.mark.parametrize("level", LEVELS)
def test_the_program_prints_the_answer(level: str) -> None:
    for one in lessons(level):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(one.code, {})
        assert printed.getvalue().split() == one.answer.split()
        assert 1 <= len(one.code.splitlines()) <= 12
    for one in lessons(level)[:2]:
        run = subprocess.run([sys.executable, "-I", "-c", one.code], capture_output=True, text=True, check=True)
        assert run.stdout.split() == one.answer.split()


@pytest.mark.parametrize("level", LEVELS)
def test_the_plan_is_a_few_short_lines(level: str) -> None:
    for one in lessons(level):
        assert 2 <= len(one.plan) <= 5
        assert all(line and "\n" not in line and len(line) <= 120 for line in one.plan)


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
