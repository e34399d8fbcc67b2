"""Drills ask for what stands in the question or follows from two of its numbers, and for nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from drills import DRILLS, compare, copy, copy_lines, divide, look_up, spell

WORDS = ["next", "Noah", "2889", "year", "Sofia", "of", "a", "the", "it", "knight"]


@pytest.mark.parametrize("drill", DRILLS)
def test_a_drill_is_a_function_of_its_source_of_chance(drill: Callable[..., object]) -> None:
    assert drill(WORDS, random.Random(3)) == drill(WORDS, random.Random(3))
    assert drill(WORDS, random.Random(3)) != drill(WORDS, random.Random(4))


def answer_of(pieces: list[tuple[str, bool]]) -> str:
    assert [target for _, target in pieces] == [True]
    return pieces[0][0].removeprefix("</think>\n\n").removesuffix("<|end|>")


def test_drills_by_hand() -> None:
    for seed in range(20):
        question, pieces = copy(WORDS, random.Random(seed))
        assert question == f"Copy: {answer_of(pieces)}"
        question, pieces = copy_lines(WORDS, random.Random(seed))
        assert question == 'List: "' + answer_of(pieces).removeprefix("- ").replace("\n- ", " ") + '"'
        question, pieces = spell(WORDS, random.Random(seed))
        lines = answer_of(pieces).splitlines()
        for line in lines:
            word, letters = line.removeprefix("- ").split(": ")
            assert letters.replace(" ", "") == word.lower()
        assert question == 'Spell: "' + " ".join(line[2:].split(":")[0] for line in lines) + '"'
        question, pieces = look_up(WORDS, random.Random(seed))
        given, _, asked = question.partition(". Look up: ")
        assert set(given.split(", ")) == set(answer_of(pieces).splitlines())
        assert [line.split(" has ")[0] for line in answer_of(pieces).splitlines()] == asked.split(", ")
        question, pieces = compare(WORDS, random.Random(seed))
        one, _, others = question.removeprefix("Compare with ").partition(": ")
        signs = answer_of(pieces).split()
        assert [sign[:-1] for sign in signs] == others.split(", ")
        for sign in signs:
            difference = float(sign[:-1]) - float(one)
            assert sign[-1] == ("<" if difference < 0 else ">" if difference > 0 else "=")
        question, pieces = divide(WORDS, random.Random(seed))
        lines = answer_of(pieces).splitlines()
        assert [line.split("=")[0] for line in lines] == question.removeprefix("Divide: ").split(", ")
        for line in lines:
            top, bottom, times = map(int, line.replace("=", "/").split("/"))
            assert times * bottom <= top < (times + 1) * bottom
            assert 1 <= times <= 9
