"""What every family teaches: routes, checks and programs that reach the answer, and slips that spoil one piece only."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import sys
from functools import cache

import pytest
import reasoning_gym

from arithmetic import Scratch
from families import FAMILIES
from lesson import Lesson
from thrifty.tasks.mix import LEVELS
from thrifty.tasks.reasoning_gym import ReasoningGymTask

LESSONS = [(family, level) for level, families in LEVELS.items() for family in families]
WITH_CHECKS = ["gcd", "knights_knaves", "letter_counting", "number_sorting", "products", "simple_equations"]
every = pytest.mark.parametrize(("family", "level"), LESSONS)


@cache
def lessons(family: str, level: str, count: int = 100) -> list[Lesson]:
    source = reasoning_gym.create_dataset(family, seed=7, size=count, **LEVELS[level][family])
    found = [FAMILIES[family](item) for item in source]
    return [lesson for lesson in found if lesson.routes]


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


def check_lines(text: str) -> None:
    assert text.endswith("\n")
    assert not text.startswith("\n")
    assert "\n\n" not in text


@every
def test_every_route_reaches_the_reference_answer_in_whole_lines(family: str, level: str) -> None:
    found = lessons(family, level)
    assert len(found) >= 98  # a problem that is beyond its family has one route, the words of the reference
    for lesson in found:
        assert len({name for name, _ in lesson.routes}) == len(lesson.routes) >= 1
        for name, route in lesson.routes:
            page = Scratch(random.Random(0))
            assert str(route(page)) == lesson.answer, (name, lesson.question)
            assert all(target for _, target in page.pieces)
            text = text_of(page)
            check_lines(text)
            assert "So the answer is" not in text


@every
def test_first_routes_are_short(family: str, level: str) -> None:
    lengths = []
    for lesson in lessons(family, level):
        page = Scratch(random.Random(0))
        lesson.routes[0][1](page)
        lengths.append(len(text_of(page)))
    assert sorted(lengths)[len(lengths) * 9 // 10] < {"easy": 550, "default": 550, "hard": 1_200}[level]


@every
def test_a_slip_anywhere_is_marked_and_carried_on(family: str, level: str) -> None:
    changed = planted = 0
    for number, lesson in enumerate(lessons(family, level)[:15]):
        for name, route in lesson.routes:
            clean = Scratch(random.Random(number))
            route(clean)
            for place in range(clean.results):
                page = Scratch(random.Random(number), slip_at=place)
                value = route(page)
                marked = [i for i, (_, target) in enumerate(page.pieces) if not target]
                assert len(marked) <= 1, (name, lesson.question)
                if marked:
                    assert page.pieces[: marked[0]] == clean.pieces[: marked[0]]
                    planted += 1
                    changed += str(value) != lesson.answer
                text = text_of(page)
                check_lines(text)
    assert planted
    assert changed / planted > 0.3  # a letter misread is rarely the one that is counted


@every
def test_the_program_prints_the_answer(family: str, level: str) -> None:
    for number, lesson in enumerate(lessons(family, level)):
        if number < 2:
            ran = subprocess.run([sys.executable, "-I", "-c", lesson.code], capture_output=True, text=True, check=True)
            printed = ran.stdout
        else:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(lesson.code, family, "exec"), {})  # our own text
            printed = out.getvalue()
        assert printed.strip() == lesson.answer, lesson.code


@every
def test_the_plan_is_a_few_short_lines(family: str, level: str) -> None:
    for lesson in lessons(family, level):
        assert 1 <= len(lesson.plan) <= 8
        assert all(step.strip() == step and step and "\n" not in step for step in lesson.plan)


@every
def test_the_boxed_answer_scores(family: str, level: str) -> None:
    task = ReasoningGymTask(family, LEVELS[level][family])
    for problem in task.problems(12, seed=3):
        assert problem.answer is not None
        answer = problem.answer.removesuffix(".")  # of a sentence
        assert task.score(problem, task.extract(problem, f"**Final Answer:** \\boxed{{{answer}}}")) == 1.0


def test_families_with_checks() -> None:
    assert [family for family in sorted(FAMILIES) if lessons(family, "default")[0].checks] == WITH_CHECKS


@pytest.mark.parametrize(("family", "level"), [pair for pair in LESSONS if pair[0] in WITH_CHECKS])
def test_checks_accept_the_answer_and_refute_most_others(family: str, level: str) -> None:
    refuted = claimed = 0
    answers = [lesson.answer for lesson in lessons(family, level)]
    for lesson, other in zip(lessons(family, level), answers[1:] + answers[:1], strict=True):
        for name, check in lesson.checks:
            page = Scratch(random.Random(0))
            assert check(page, lesson.answer) is True, (name, lesson.question)
            text = text_of(page)
            check_lines(text)
            for wrong in ("", "no number", "1.5.", "{"):
                assert check(Scratch(random.Random(0)), wrong) is False
            if other != lesson.answer:
                claimed += 1
                refuted += not check(Scratch(random.Random(0)), other)
            clean = Scratch(random.Random(1))
            check(clean, lesson.answer)
            for place in range(0, clean.results, 3):
                page = Scratch(random.Random(1), slip_at=place)
                check(page, lesson.answer)
                assert sum(not target for _, target in page.pieces) <= 1
    assert refuted / claimed > 0.6
