"""Instructions are asked in the methods' own words and answered by the teacher as those ask."""

from __future__ import annotations

import random
import re

import pytest
import reasoning_gym

from families import FAMILIES
from instructions import INSTRUCTIONS, Instruction, behaviors, decompose, given_thought, hint, outline, strategy
from lesson import Lesson
from teacher import ANSWER_CUE, THINK_CLOSE, Pieces
from thrifty.methods.control.plan_and_budget import parse_steps
from thrifty.methods.control.thoughtmani import DECLINE, decline_reason
from thrifty.tasks.mix import LEVELS


def lessons(family: str, level: str = "default") -> list[Lesson]:
    source = reasoning_gym.create_dataset(family, seed=11, size=20, **LEVELS[level][family])
    return [FAMILIES[family](item) for item in source]


def text_of(pieces: Pieces) -> str:
    return "".join(text for text, _ in pieces)


def boxed(pieces: Pieces) -> str:
    return text_of(pieces).rpartition(ANSWER_CUE)[2].removesuffix("<|end|>").removesuffix("}")


@pytest.mark.parametrize("write", INSTRUCTIONS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("family", ["products", "knights_knaves"])
def test_the_question_is_in_the_prompt_and_what_is_boxed_is_mostly_right(write: Instruction, family: str) -> None:
    right = total = 0
    for number, lesson in enumerate(lessons(family)):
        question, pieces = write(lesson, family, "default", random.Random(number))
        assert lesson.question in question
        assert text_of(pieces).endswith("<|end|>")
        if ANSWER_CUE in text_of(pieces):
            total += 1
            right += boxed(pieces) == lesson.answer
    assert right >= 0.6 * total  # a slip may stand where reflection was cut


def test_after_a_hint_the_thinking_is_soon_closed() -> None:
    for number, lesson in enumerate(lessons("chain_sum")):
        _, pieces = hint(lesson, "chain_sum", "default", random.Random(number))
        marks = [i for i, (text, _) in enumerate(pieces) if "make answer concise!" in text]
        if not marks:  # a derivation may hold no comma
            continue
        (at,) = marks
        assert pieces[at] == ("-<|user|>make answer concise!<|end|>-", False)
        rest = text_of(pieces[at + 1 :])
        rest = rest.split(THINK_CLOSE)[0]
        assert rest.count("\n\n") <= 1 + rest.count("once more")  # what is in doubt is settled first


def test_thoughts_come_from_outside_and_the_answer_works_them_out() -> None:
    lesson = lessons("products")[0]
    _, pieces = given_thought(lesson, "products", "default", random.Random(0))
    assert pieces[0] == ("\n".join(lesson.plan) + f"\n{THINK_CLOSE}\n\n", False)
    assert all(target for _, target in pieces[1:])
    assert boxed(pieces) == lesson.answer


def test_outlines_and_plans_are_what_their_methods_read() -> None:
    declined = 0
    for number, lesson in enumerate(lessons("gcd", "hard")):
        _, pieces = outline(lesson, "gcd", "hard", random.Random(number))
        reply = text_of(pieces[1:]).removesuffix("<|end|>")
        declined += decline_reason(reply, len(reply), 512) == "stop"
        assert (DECLINE in reply) or reply == "\n".join(lesson.plan)
        _, pieces = decompose(lesson, "gcd", "hard", random.Random(number))
        steps = parse_steps(text_of(pieces[1:]).removesuffix("<|end|>"))
        assert steps is not None
        assert [step.text for step in steps] == lesson.plan[:5]
    assert 5 < declined < 20


def test_behaviors_are_named_and_strategies_bound_reflection() -> None:
    for number, lesson in enumerate(lessons("products")):
        question, pieces = behaviors(lesson, "products", "default", random.Random(number))
        name = text_of(pieces).removeprefix("Using ").partition(".")[0]
        assert f"- {name}: " in question
        question, pieces = strategy(lesson, "products", "default", random.Random(number))
        paragraphs = text_of(pieces).split(THINK_CLOSE)[0].split("\n\n")
        if "This question is demanding" in question:
            assert len(paragraphs) == 1
        if "check the result once" in question:
            assert len(paragraphs) >= 2
            assert not re.search(r"right\. The answer is .*\n\n", text_of(pieces).split(THINK_CLOSE)[0])
