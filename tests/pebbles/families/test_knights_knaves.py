"""Knights and knaves: the cases are judged as the puzzle words them, and slips lead to another answer."""

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
from families.knights_knaves import lesson
from lesson import Check, Lesson
from thrifty.tasks.reasoning_gym import ReasoningGymTask

LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"n_people": 2, "depth_constraint": 2, "width_constraint": 2},
    "default": {"n_people": 2, "depth_constraint": 3, "width_constraint": 2},
    "hard": {"n_people": 3, "depth_constraint": 2, "width_constraint": 2},
}
LONGEST = {
    "easy": (400, 700),
    "default": (520, 1100),
    "hard": (800, 1700),
}  # characters of a first route, mean and maximum


@cache
def lessons(level: str) -> list[Lesson]:
    return [lesson(item) for item in reasoning_gym.create_dataset("knights_knaves", seed=7, size=200, **LEVELS[level])]


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
    task = ReasoningGymTask("knights_knaves", LEVELS[level])
    items = reasoning_gym.create_dataset("knights_knaves", seed=0, size=2000, **LEVELS[level])
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
