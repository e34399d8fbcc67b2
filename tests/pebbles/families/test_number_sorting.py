"""Number sorting: numbers go one by one into a list, equal ones keep their order, and slips are carried on."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import reasoning_gym

from arithmetic import Scratch
from families.number_sorting import lesson
from lesson import Lesson

LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"min_numbers": 3, "max_numbers": 3, "max_decimals": 0},
    "default": {"min_numbers": 4, "max_numbers": 5, "max_decimals": 0},
    "hard": {"min_numbers": 6, "max_numbers": 8, "max_decimals": 1},
}


@cache
def lessons(level: str) -> list[Lesson]:
    return [lesson(item) for item in reasoning_gym.create_dataset("number_sorting", seed=7, size=200, **LEVELS[level])]


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


def assert_lines(page: Scratch) -> None:
    text = text_of(page)
    assert text.endswith("\n")
    assert all(line.strip() for line in text[:-1].split("\n")), text
    assert "So the answer is" not in text


@pytest.mark.parametrize("level", LEVELS)
def test_checks_tell_right_from_wrong(level: str) -> None:
    for one in lessons(level):
        for _, check in one.checks:
            page = Scratch(random.Random(0))
            assert check(page, one.answer)
            assert_lines(page)
            for wrong in wrong_answers(one.answer):
                page = Scratch(random.Random(0))
                assert not check(page, wrong), (one.question, wrong)
                assert_lines(page)


def wrong_answers(answer: str) -> list[str]:
    numbers: list[str] = eval(answer)
    swapped = [numbers[1], numbers[0], *numbers[2:]]
    found = ["", "7", "nonsense", "['a']", "[1.0]", str(numbers[1:]), str([*numbers, numbers[-1]])]
    found.append(str([*numbers[:-1], "1234.5"]))
    return found + ([str(swapped)] if float(numbers[0]) != float(numbers[1]) else [])


def example(numbers: list[str], direction: str) -> Lesson:
    answer = str(sorted(numbers, key=float, reverse=direction == "descending"))
    metadata = {"original_numbers": numbers, "direction": direction}
    return lesson({"question": "?", "answer": answer, "metadata": metadata})


def test_lines_by_hand() -> None:
    one = example(["19.0", "-26.5", "25.0"], "ascending")
    page = Scratch(random.Random(0))
    assert one.routes[0][1](page) == "['-26.5', '19.0', '25.0']"
    assert text_of(page) == (
        "stop at >\nput 19: -> 19\nput -26.5: 19> -> -26.5, 19\nput 25: -26.5< 19< -> -26.5, 19, 25\n"
    )
    page = Scratch(random.Random(0))
    assert one.routes[1][1](page) == one.answer
    assert text_of(page).endswith("put 19: 25> -26.5< -> 25, 19, -26.5\nreversed: -26.5, 19, 25\n")


@pytest.mark.parametrize("direction", ["ascending", "descending"])
def test_equal_numbers_keep_their_order(direction: str) -> None:
    one = example(["0.0", "-3.0", "-0.0", "5.0", "5.0"], direction)
    for _, route in one.routes:
        assert route(Scratch(random.Random(0))) == one.answer
    assert one.checks[0][1](Scratch(random.Random(0)), one.answer)
