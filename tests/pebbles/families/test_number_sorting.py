"""Number sorting: numbers go one by one into a list, equal ones keep their order, and slips are carried on."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import reasoning_gym

from arithmetic import Scratch
from families.number_sorting import lesson
from lesson import Check, Lesson
from thrifty.tasks.reasoning_gym import ReasoningGymTask

LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"min_numbers": 3, "max_numbers": 3, "max_decimals": 0},
    "default": {"min_numbers": 4, "max_numbers": 5, "max_decimals": 0},
    "hard": {"min_numbers": 6, "max_numbers": 8, "max_decimals": 1},
}
LONGEST = {
    "easy": (90, 100),
    "default": (160, 210),
    "hard": (350, 550),
}  # characters of a first route, mean and maximum


@cache
def lessons(level: str) -> list[Lesson]:
    return [lesson(item) for item in reasoning_gym.create_dataset("number_sorting", seed=7, size=200, **LEVELS[level])]


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


def checking(check: Check, answer: str) -> Callable[[Scratch], bool]:
    return lambda page: check(page, answer)


def assert_lines(page: Scratch) -> None:
    text = text_of(page)
    assert text.endswith("\n")
    assert all(line.strip() for line in text[:-1].split("\n")), text
    assert "So the answer is" not in text


@pytest.mark.parametrize("level", LEVELS)
def test_every_route_reaches_the_reference_answer(level: str) -> None:
    for one in lessons(level):
        for name, route in one.routes:
            page = Scratch(random.Random(0))
            assert route(page) == one.answer, (one.question, name)
            assert_lines(page)
            assert all(target for _, target in page.pieces)


@pytest.mark.parametrize("level", LEVELS)
def test_first_routes_are_short(level: str) -> None:
    lengths = []
    for one in lessons(level):
        page = Scratch(random.Random(0))
        one.routes[0][1](page)
        lengths.append(len(text_of(page)))
    mean, longest = LONGEST[level]
    assert sum(lengths) / len(lengths) < mean
    assert max(lengths) < longest


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


@pytest.mark.parametrize("level", LEVELS)
def test_any_slip_is_marked_and_the_working_goes_on(level: str) -> None:
    changed = slips = 0
    for one in lessons(level)[:30]:
        works: list[Callable[[Scratch], Any]] = [route for _, route in one.routes]
        works += [checking(check, one.answer) for _, check in one.checks]
        for work in works:
            clean = Scratch(random.Random(0))
            right = work(clean)
            for chosen in range(clean.results):
                page = Scratch(random.Random(chosen), slip_at=chosen)
                changed += work(page) != right
                slips += 1
                assert_lines(page)
                flags = [target for _, target in page.pieces]
                assert flags.count(False) == 1
                place = flags.index(False)
                assert page.pieces[:place] == clean.pieces[:place]
                assert page.pieces[place][0] != clean.pieces[place][0]
    assert changed > slips / 4


@pytest.mark.parametrize("level", LEVELS)
def test_the_code_prints_the_answer(level: str) -> None:
    for number, one in enumerate(lessons(level)):
        assert 1 <= len(one.code.splitlines()) <= 12
        assert 2 <= len(one.plan) <= 5
        if number < 3:
            run = subprocess.run([sys.executable, "-c", one.code], capture_output=True, text=True, check=True)
            assert run.stdout.split() == one.answer.split()
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(one.code, {})
        assert output.getvalue().split() == one.answer.split()


@pytest.mark.parametrize("level", LEVELS)
def test_the_boxed_answer_scores(level: str) -> None:
    task = ReasoningGymTask("number_sorting", LEVELS[level])
    items = reasoning_gym.create_dataset("number_sorting", seed=0, size=2000, **LEVELS[level])
    by_question = {item["question"].strip(): item for item in items}
    tried = 0
    for problem in task.problems(limit=20):
        answer = lesson(by_question[problem.question]).answer
        stated = task.extract(problem, f"<think>\n1\n</think>\n\n**Final Answer:** \\boxed{{{answer}}}")
        assert stated == answer
        assert task.score(problem, stated) == 1.0
        tried += 1
    assert tried == 20


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
