"""Knights and knaves: the cases are judged as the puzzle words them, and slips lead to another answer."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import reasoning_gym

from arithmetic import Scratch
from families.knights_knaves import lesson
from lesson import Lesson

LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"n_people": 2, "depth_constraint": 2, "width_constraint": 2},
    "default": {"n_people": 2, "depth_constraint": 3, "width_constraint": 2},
    "hard": {"n_people": 3, "depth_constraint": 2, "width_constraint": 2},
}


@cache
def lessons(level: str) -> list[Lesson]:
    return [lesson(item) for item in reasoning_gym.create_dataset("knights_knaves", seed=7, size=200, **LEVELS[level])]


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
    first, _, rest = answer.partition(", ")
    name = first.split()[0]
    other = rest.split(", ")[-1].split()[-2:]
    flipped = first.split()[-2:] != other
    # everyone like the last is wrong wherever the first is not
    found = ["", "7", first, f"{answer}, and {first}", f"{name} is a wizard, {rest}", answer.replace(" is ", " ")]
    return found + ([f"{name} is {' '.join(other)}, {rest}"] if flipped else [])


def example(statements: tuple[Any, ...]) -> Lesson:
    terms = {"knight": "sage", "knave": "fool", "a_knight": "a sage", "a_knave": "a fool"}
    metadata = {"statements": statements, "names": ["Ava", "Noah"], "knight_knave_terms": terms}
    return lesson({"question": "?", "answer": "Ava is a sage, and Noah is a fool.", "metadata": metadata})


def test_lines_by_hand() -> None:
    inner = ("not", ("and", ("telling-truth", 0), ("not", ("lying", 1))))
    one = example((inner, ("->", ("telling-truth", 0), ("telling-truth", 1))))
    page = Scratch(random.Random(0))
    assert one.routes[0][1](page) == one.answer
    assert text_of(page) == (
        "Ava says: not (Ava sage and Noah sage)\n"
        "Noah says: if Ava sage then Noah sage\n"
        "Try Ava sage, Noah sage\n"
        "Ava needs T: not (Ava sage T and Noah sage T = T) = F no\n"
        "Try Ava sage, Noah fool\n"
        "Ava needs T: not (Ava sage T and Noah sage F = F) = T ok\n"
        "Noah needs F: if Ava sage T then Noah sage F = F ok\n"
    )


def test_the_last_case_needs_no_trying() -> None:
    page = Scratch(random.Random(0))
    one = example((("or", ("telling-truth", 0), ("telling-truth", 1)), ("lying", 0)))
    assert one.routes[1][1](page) == one.answer
    assert text_of(page).count("Try ") == 3  # all knaves, then each alone
