"""Lessons on counting letters: every route and check, with and without slips."""

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
from families.letter_counting import lesson
from lesson import Lesson

LEVELS = {
    "easy": {"min_words": 1, "max_words": 2},
    "default": {"min_words": 3, "max_words": 5},
    "hard": {"min_words": 6, "max_words": 10},
}
LONGEST = {"easy": 100, "default": 200, "hard": 350}


@cache
def lessons(level: str, size: int = 300) -> list[Lesson]:
    source = reasoning_gym.create_dataset("letter_counting", seed=11, size=size, **LEVELS[level])
    return [lesson(item) for item in source]


def text_of(page: Scratch) -> str:
    return "".join(text for text, _ in page.pieces)


def check_lines(text: str) -> None:
    assert text.endswith("\n")
    assert "\n\n" not in text
    assert not text.startswith("\n")
    assert "So the answer" not in text


@pytest.mark.parametrize("level", LEVELS)
def test_every_route_reaches_the_reference_answer(level: str) -> None:
    for one in lessons(level):
        for name, route in one.routes:
            page = Scratch(random.Random(0))
            assert (str(route(page)), name) == (one.answer, name), one.question
            assert all(target for _, target in page.pieces)
            check_lines(text_of(page))
            assert len(text_of(page)) <= LONGEST[level]


@pytest.mark.parametrize("level", LEVELS)
def test_the_check_accepts_the_answer_only(level: str) -> None:
    for one in lessons(level):
        for _, check in one.checks:
            for claimed in (one.answer, str(int(one.answer) + 1), str(int(one.answer) - 1)):
                page = Scratch(random.Random(0))
                assert check(page, claimed) == (claimed == one.answer)
                check_lines(text_of(page))
            for claimed in ("", "x", "1/2", "-1", "3 letters"):
                assert not check(Scratch(random.Random(0)), claimed)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(3))
def test_routes_and_checks_go_on_after_any_slip(level: str, seed: int) -> None:
    changed = total = 0
    for one in lessons(level)[:40]:
        writers = [route for _, route in one.routes]
        writers += [lambda s, check=check, one=one: check(s, one.answer) for _, check in one.checks]
        for place, write in enumerate(writers):
            clean = Scratch(random.Random(seed))
            right = write(clean)
            for chosen in range(clean.results):
                page = Scratch(random.Random(seed), slip_at=chosen)
                value = write(page)
                assert isinstance(value, bool) == (place == len(one.routes))
                check_lines(text_of(page))
                flags = [target for _, target in page.pieces]
                if all(flags):  # a text of one word has no other word to slip to
                    assert page.pieces == clean.pieces
                    continue
                assert flags.count(False) == 1
                slipped = flags.index(False)
                assert page.pieces[:slipped] == clean.pieces[:slipped]
                assert page.pieces[slipped][0] != clean.pieces[slipped][0]
                assert len(text_of(page)) < 600
                changed += value != right
                total += 1
    assert changed / total > 0.2


@pytest.mark.parametrize("level", LEVELS)
def test_the_code_prints_the_answer(level: str) -> None:
    for number, one in enumerate(lessons(level)):
        if number < 3:
            done = subprocess.run([sys.executable, "-c", one.code], capture_output=True, text=True, check=True)
            assert done.stdout.strip() == one.answer
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(one.code, {})
        assert printed.getvalue().strip() == one.answer
        assert 2 <= len(one.plan) <= 5


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
