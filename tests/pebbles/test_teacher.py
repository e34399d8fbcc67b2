"""Teacher traces: five formats, reflection whatever the difficulty, masks that leave out slips and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest
import reasoning_gym

from arithmetic import Scratch
from families import FAMILIES
from lesson import Lesson
from teacher import ANSWER_CUE, FORMATS, THINK_CLOSE, Pieces, derive, long, long_thinking
from thrifty.tasks.mix import LEVELS

FIRST_ATTEMPT = "So the answer is "


@cache
def lessons(family: str, level: str = "default") -> list[Lesson]:
    source = reasoning_gym.create_dataset(family, seed=7, size=60, **LEVELS[level][family])
    return [lesson for item in source if (lesson := FAMILIES[family](item)).routes]


def text_of(pieces: Pieces) -> str:
    return "".join(text for text, _ in pieces)


def boxed(pieces: Pieces) -> str:
    return text_of(pieces).rpartition(ANSWER_CUE)[2].removesuffix("<|end|>").removesuffix("}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", ["short", "plan", "direct"])
def test_formats_without_reflection_are_right_or_hasty_and_all_targets(family: str, format: str) -> None:
    for number, lesson in enumerate(lessons(family)):
        pieces = FORMATS[format](lesson, random.Random(number))
        hasty = derive(lesson.routes[0][1], random.Random(0), hasty=True)[1]
        assert boxed(pieces) in ({lesson.answer} if format == "direct" else {lesson.answer, hasty})
        untrained = [text for text, target in pieces if not target]
        assert untrained in ([], ["\n", f"{THINK_CLOSE}\n\n"])  # a short trace may be cut
        text = text_of(pieces)
        assert text.count("<") - lesson.answer.count("<") - text.count("< ") >= 2 or format != "direct"
        if format == "direct":
            assert text == f"{THINK_CLOSE}\n\n{ANSWER_CUE}{lesson.answer}}}<|end|>"
        elif format == "plan":
            assert text.startswith("Plan:\n1. ")
            assert FIRST_ATTEMPT + boxed(pieces) in text


def test_the_code_format_answers_with_a_program() -> None:
    lesson = lessons("chain_sum")[0]
    text = text_of(FORMATS["code"](lesson, random.Random(0)))
    assert text == f"{THINK_CLOSE}\n\n```python\n{lesson.code}\n```<|end|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_long_thinking_states_what_stands_in_every_paragraph(family: str) -> None:
    for number, lesson in enumerate(lessons(family)):
        paragraphs, standing = long_thinking(lesson, random.Random(number))
        assert len(paragraphs) == len(standing) >= 2
        for paragraph, value in zip(paragraphs, standing, strict=True):
            last = paragraph[-1][0]
            assert value in last or "this does not fit" in last or last.startswith("That is another result, "), last
        assert text_of(paragraphs[0]).endswith(f"{FIRST_ATTEMPT}{standing[0]}.")


def test_slips_are_planted_and_nearly_always_repaired() -> None:
    first, last, total = 0, 0, 0
    for family in FAMILIES:
        for number, lesson in enumerate(lessons(family)):
            _, standing = long_thinking(lesson, random.Random(number))
            total += 1
            first += standing[0] != lesson.answer
            last += standing[-1] != lesson.answer
    assert 0.12 < first / total < 0.26  # a quarter slips, and some slips change nothing
    assert last / total < 0.02


def test_haste_is_learned_costs_at_the_hard_level_and_is_repaired() -> None:
    wrong = {}
    for level in LEVELS:
        shares = []
        for family in LEVELS[level]:
            found = lessons(family, level)
            firsts = [derive(one.routes[0][1], random.Random(0), hasty=True) for one in found]
            assert all(target for working, _ in firsts for _, target in working)
            shares.append(sum(value != one.answer for one, (_, value) in zip(found, firsts, strict=True)) / len(found))
        wrong[level] = sum(shares) / len(shares)
    assert wrong["easy"] == 0 < wrong["default"] < 0.04 < 0.12 < wrong["hard"]
    hard = lessons("chain_sum", "hard")
    standing = [long_thinking(one, random.Random(number), slip_rate=0)[1] for number, one in enumerate(hard)]
    assert sum(first != one.answer for one, (first, *_) in zip(hard, standing, strict=True)) > len(hard) / 4
    assert [last for *_, last in standing] == [one.answer for one in hard]


def test_reflection_does_not_depend_on_difficulty() -> None:
    counts = {}
    for level in LEVELS:
        found = [
            len(long_thinking(lesson, random.Random(f"{family}{number}"), slip_rate=0)[0])
            for family in LEVELS[level]
            for number, lesson in enumerate(lessons(family, level))
        ]
        counts[level] = sum(found) / len(found)
    assert max(counts.values()) - min(counts.values()) < 0.25, counts


@cache
def completions() -> list[tuple[Lesson, Pieces]]:
    rng = random.Random(11)
    return [(lesson, long(lesson, rng)) for family in FAMILIES for lesson in lessons(family) for _ in range(2)]


def kind(pieces: Pieces) -> str:
    closings = [target for text, target in pieces if text.startswith(THINK_CLOSE)]
    assert len(closings) <= 1
    return "cued" if not closings else "whole" if closings[0] else "closed"


def test_most_long_traces_are_whole() -> None:
    shares = Counter(kind(pieces) for _, pieces in completions())
    total = sum(shares.values())
    assert shares["whole"] / total == pytest.approx(0.72, abs=0.05)
    assert shares["closed"] / total == pytest.approx(0.23, abs=0.05)
    assert shares["cued"] / total == pytest.approx(0.05, abs=0.03)


def test_closed_traces_answer_and_learn_no_early_closing() -> None:
    for lesson, pieces in completions():
        if kind(pieces) != "closed":
            continue
        assert pieces[-2] == (f"{THINK_CLOSE}\n\n", False)
        assert pieces[-1] == (f"{ANSWER_CUE}{boxed(pieces)}}}<|end|>", True)
        if len(pieces) < 3 or pieces[-3] == ("\n", False):  # cut within the first derivation, or before it
            assert boxed(pieces) == lesson.answer


def test_cued_traces_learn_the_answer_and_not_the_cue() -> None:
    for _, pieces in completions():
        if kind(pieces) == "cued":
            assert pieces[-2:] == [(ANSWER_CUE, False), (f"{boxed(pieces)}}}", True)]


def test_a_route_without_places_for_a_slip_is_written_as_it_is() -> None:
    def route(page: Scratch) -> int:
        page.write("z=5\n")
        return 5

    assert derive(route, random.Random(0), slip=True) == ([("z=5\n", True)], "5")
