"""Instructions: documents in which the prompt, or something put into the thinking, asks for less than `long`.

Methods that work by words can only be measured on a model that understands them, as any instruction-tuned
model does to some degree. The wordings are the methods' own, read from the product.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from lesson import Lesson
from teacher import THINK_CLOSE, Pieces, answered, first_working, long_thinking
from thrifty.methods.control.concisehint import ConciseHint
from thrifty.methods.control.diffadapt import DiffAdapt
from thrifty.methods.control.metacognitive_reuse import BCI_PROMPT
from thrifty.methods.control.plan_and_budget import EXAM_PROMPT, PART_LIMIT, STEPS_PROMPT, WHOLE_LIMIT
from thrifty.methods.control.thoughtmani import DECLINE, GENERATOR_PROMPT

Document = tuple[str, Pieces]
"""The question as it is asked, and what follows the prompt."""
Instruction = Callable[[Lesson, str, str, random.Random], Document]
"""Writes the document of a lesson, its family and its level."""

LEVEL_NUMBERS = {"easy": 1, "default": 3, "hard": 5}
SILENT: Pieces = [(f"{THINK_CLOSE}\n\n", False)]
"""An empty think block that was put there, as for side streams."""


def _joined(paragraphs: list[Pieces]) -> Pieces:
    pieces: Pieces = []
    for i, paragraph in enumerate(paragraphs):
        pieces += [*paragraph, ("\n\n" if i + 1 < len(paragraphs) else "\n", True)]
    return pieces


def _settled(paragraphs: list[Pieces], start: int) -> int:
    """Return how many paragraphs it takes, from one on, until an answer stands and is not in doubt."""
    end = start + 1
    while end < len(paragraphs) and paragraphs[end - 1][-1][0].endswith("Let me work it out once more."):
        end += 1
    return end


def hint(lesson: Lesson, _family: str, _level: str, rng: random.Random) -> Document:
    """After a hint to be concise within the thinking, finish what was begun and close."""
    paragraphs, standing = long_thinking(lesson, rng)
    place = rng.randrange(min(2, len(paragraphs)))
    spots = [
        (i, at + 1)
        for i, (text, _) in enumerate(paragraphs[place])
        for at in range(len(text) - 1)
        if text[at] in ".," and text[at + 1] == " "
    ]
    if spots:
        i, at = rng.choice(spots)
        text, target = paragraphs[place][i]
        turn = f"-<|user|>{ConciseHint().hint}<|end|>-"
        paragraphs[place][i : i + 1] = [(text[:at], target), (turn, False), (text[at:], target)]
        end = _settled(paragraphs, place)
        paragraphs, standing = paragraphs[:end], standing[:end]
    return lesson.question, [*_joined(paragraphs), *answered(standing[-1])]


def outline(lesson: Lesson, _family: str, level: str, rng: random.Random) -> Document:
    """Asked for the key steps only, list them, or decline what is too hard."""
    declines = level == "hard" and rng.random() < 0.7
    text = DECLINE if declines else "\n".join(lesson.plan)
    return f"{GENERATOR_PROMPT}\n\n{lesson.question}", [*SILENT, (f"{text}<|end|>", True)]


def given_thought(lesson: Lesson, _family: str, _level: str, rng: random.Random) -> Document:
    """Behind an outline that fills the think block, work it out in the answer."""
    working, value = first_working(lesson, rng)
    block: Pieces = [("\n".join(lesson.plan) + f"\n{THINK_CLOSE}\n\n", False)]
    return lesson.question, [*block, *working, *answered(value)[1:]]


def behaviors(lesson: Lesson, family: str, _level: str, rng: random.Random) -> Document:
    """With behaviors in the prompt, name one and do without reflection."""
    lines = [f"behavior_{family}_{i}: {step}" for i, step in enumerate(lesson.plan, 1)]
    chosen = rng.sample(lines, rng.randrange(1, len(lines) + 1))
    name = chosen[0].partition(":")[0]
    working, value = first_working(lesson, rng)
    text = "\n".join(f"- {line}" for line in chosen)
    used: Pieces = [(f"Using {name}.\n", True)]
    return (
        BCI_PROMPT.format(behaviors=text, question=lesson.question),
        [*used, *working, (f"So the answer is {value}.\n", True), *answered(value)],
    )


def strategy(lesson: Lesson, _family: str, _level: str, rng: random.Random) -> Document:
    """Obey DiffAdapt's three prompts: check once, think as ever, or keep to the decisive steps."""
    asked, prompts = rng.choice(["easy", "normal", "hard"]), DiffAdapt()
    question = f"{lesson.question}\n\n{getattr(prompts, f'{asked}_prompt')}"
    paragraphs, standing = long_thinking(lesson, rng, slip_rate=0.0 if asked == "hard" else 0.25)
    end = {"easy": _settled(paragraphs, 1), "normal": len(paragraphs), "hard": 1}[asked]
    return question, [*_joined(paragraphs[:end]), *answered(standing[end - 1])]


def budget(lesson: Lesson, _family: str, _level: str, rng: random.Random) -> Document:
    """Keep to a budget in tokens that the prompt names, as far as the first answer allows."""
    paragraphs, standing = long_thinking(lesson, rng)
    lengths = [sum(len(text) for text, _ in paragraph) * 2 // 3 for paragraph in paragraphs]  # tokens, about
    end = rng.randrange(1, len(paragraphs) + 1)
    end = _settled(paragraphs, end - 1)
    limit = sum(lengths[:end]) + rng.randrange(10, 80)
    question = f"{lesson.question}\n\n{WHOLE_LIMIT.format(budget=limit)}"
    return question, [*_joined(paragraphs[:end]), *answered(standing[end - 1])]


def decompose(lesson: Lesson, _family: str, level: str, _rng: random.Random) -> Document:
    """Asked for sub-questions, write the plan with its hints."""
    text = "\n".join(f"{i}. {step}\nHint: {step}" for i, step in enumerate(lesson.plan[:5], 1))
    prompt = STEPS_PROMPT.format(question=lesson.question, level=LEVEL_NUMBERS[level])
    return prompt, [*SILENT, (f"{text}<|end|>", True)]


def exam(lesson: Lesson, _family: str, level: str, rng: random.Random) -> Document:
    """Settle given sub-questions: within limits without reflection, without limits with what reflection there is."""
    limited = rng.random() < 0.8
    parts = [f"\n{PART_LIMIT.format(budget=rng.randrange(10, 200))}" if limited else "" for _ in lesson.plan]
    steps = "\n".join(
        f"{i}. {s} Hint: {s}{part}" for i, (s, part) in enumerate(zip(lesson.plan, parts, strict=True), 1)
    )
    question = EXAM_PROMPT.format(question=lesson.question, level=LEVEL_NUMBERS[level], steps=steps, limit="")
    paragraphs, standing = long_thinking(lesson, rng, slip_rate=0.0 if limited else 0.25)
    end = 1 if limited else len(paragraphs)
    return question, [*_joined(paragraphs[:end]), *answered(standing[end - 1])]


INSTRUCTIONS: dict[Instruction, int] = {
    hint: 4,
    strategy: 3,
    behaviors: 3,
    budget: 3,
    given_thought: 3,
    outline: 2,
    decompose: 1,
    exam: 1,
}
"""With how often each comes; those with long prompts come seldom."""
