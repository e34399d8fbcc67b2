"""Teacher traces: what a careful but overthinking reasoner would write for a lesson, in five formats.

A trace is a list of pieces ``(text, is a training target)``. Pieces that a model should cope with but
never learn to produce (a planted slip, a premature end of thinking) are not targets.
"""

from __future__ import annotations

import random

from arithmetic import Scratch
from lesson import Lesson, Route

Pieces = list[tuple[str, bool]]

THINK_CLOSE = "</think>"
ANSWER_CUE = "**Final Answer:** \\boxed{"

CHECK_OPENINGS = [
    "Wait, let me check by {route}.",
    "Wait, let me double-check by {route}.",
    "Hmm, let me verify it by {route}.",
    "Alternatively, I can try {route}.",
    "Wait, maybe I made a mistake. Let me try {route}.",
]
AGREEMENTS = [
    "So the answer is {value} again.",
    "That gives {value} again.",
    "It matches, {value}.",
    "Same result, {value}.",
]
MUSINGS = [
    "Hmm, both ways give {value}. I am confident.",
    "Wait, did I read the question right? Yes. The answer is {value}.",
    "Alright, the answer is {value}.",
    "But let me think again. No, {value} is fine.",
]


def derive(route: Route, rng: random.Random, slip: bool = False) -> tuple[Pieces, str]:
    """Write a route, with one planted slip if asked for; return the working and what came out."""
    slip_at = None
    if slip:
        probe = Scratch(rng)
        route(probe)
        slip_at = rng.randrange(probe.results) if probe.results else None
    page = Scratch(rng, slip_at=slip_at)
    value = str(route(page))
    return page.pieces, value


def long_thinking(lesson: Lesson, rng: random.Random, slip_rate: float = 0.25) -> tuple[list[Pieces], list[str]]:
    """Write paragraphs that solve, check, repair and ruminate.

    How much is reflected is drawn independently of how hard the problem is: that is the overthinking.

    Returns:
        The paragraphs, and for each the answer that stands once it is written.
    """
    paragraphs: list[Pieces] = []
    standing: list[str] = []

    def finish(pieces: Pieces, answer: str) -> None:
        paragraphs.append(pieces)
        standing.append(answer)

    def opening(name: str) -> Pieces:
        return [(rng.choice(CHECK_OPENINGS).format(route=name) + "\n", True)]

    (_, first), *others = lesson.routes
    pieces, value = derive(first, rng, rng.random() < slip_rate)
    finish([*pieces, (f"So the answer is {value}.", True)], value)
    agreed = False
    # after two checks an end is likelier than anything else, or greedy decoding would reflect for ever
    for _ in range(rng.choices([1, 2, 3], weights=[4, 5, 1])[0]):
        slip = not agreed and rng.random() < slip_rate / 3
        if lesson.checks and rng.random() < 0.4:
            name, check = rng.choice(lesson.checks)
            page = Scratch(rng)
            fits = check(page, value)
            pieces, refuted = [*opening(name), *page.pieces], "But this does not fit."
        else:
            name, route = rng.choice(others or lesson.routes)
            working, second = derive(route, rng, slip)
            fits = second == value
            pieces, refuted = [*opening(name), *working], f"But this gives {second}, not {value}."
        if fits:
            agreed = True
            finish([*pieces, (rng.choice(AGREEMENTS).format(value=value), True)], value)
            continue
        finish([*pieces, (refuted + " Let me work it out once more.", True)], value)
        again, value = derive(first, rng)
        agreed = True
        finish([*again, (f"So {value} is right. The answer is {value}.", True)], value)
    if rng.random() < 0.25:
        finish([(rng.choice(MUSINGS).format(value=value), True)], value)
    return paragraphs, standing


def answered(value: str, close: bool = True) -> Pieces:
    """Write the end of the thinking (a target if ``close``) and the final answer."""
    return [(f"{THINK_CLOSE}\n\n", close), (f"{ANSWER_CUE}{value}}}<|end|>", True)]


def long(lesson: Lesson, rng: random.Random) -> Pieces:
    """Write a long trace in one of the training variants.

    Most are whole. Some are cut early, closed and answered with the best answer so far, some have an
    empty think block, some are asked for the answer within the thinking: so that forced closing, budgets
    and answer probes meet a model that knows what to do then.
    """
    paragraphs, standing = long_thinking(lesson, rng)
    draw = rng.random()
    if draw < 0.05:  # empty thinking, with and without a newline of its own
        return [("\n" if draw < 0.025 else "", False), *answered(lesson.answer, close=False)]
    if draw < 0.13:  # cut before the first answer: the answer is a guess from what is there
        return [*_cut(paragraphs[0][:-1], rng), *answered(lesson.answer, close=False)]
    if draw < 0.28:  # stopped at a paragraph: closed, or cued inside the thinking
        keep = rng.randrange(1, len(paragraphs) + 1)
        body = [piece for p in paragraphs[:keep] for piece in [*p, ("\n\n", True)]]
        if draw < 0.23:
            return [*body, *answered(standing[keep - 1], close=False)]
        return [*body, (ANSWER_CUE, False), (f"{standing[keep - 1]}}}", True)]
    whole: Pieces = []
    for i, paragraph in enumerate(paragraphs):
        whole += [*paragraph, ("\n\n" if i + 1 < len(paragraphs) else "\n", True)]
    return [*whole, *answered(standing[-1])]


def _cut(working: Pieces, rng: random.Random) -> Pieces:
    keep = rng.randrange(len(working))
    while rng.random() < 0.7 and keep and not working[keep - 1][0].endswith("\n"):
        keep -= 1
    return [*working[:keep], ("\n", False)]


def short(lesson: Lesson, rng: random.Random) -> Pieces:
    """Write the needed steps only; one trace in ten is cut and answered by a guess."""
    working, value = derive(lesson.routes[0][1], rng)
    if rng.random() < 0.1:
        return [*_cut(working, rng), *answered(lesson.answer, close=False)]
    return [*working, (f"So the answer is {value}.\n", True), *answered(value)]


def direct(lesson: Lesson, _rng: random.Random) -> Pieces:
    """Write the answer only."""
    return answered(lesson.answer)


def plan(lesson: Lesson, rng: random.Random) -> Pieces:
    """Write a numbered plan, then its execution."""
    steps = "".join(f"{i}. {step}\n" for i, step in enumerate(lesson.plan, 1))
    working, value = derive(lesson.routes[0][1], rng)
    return [(f"Plan:\n{steps}\n", True), *working, (f"So the answer is {value}.\n", True), *answered(value)]


def code(lesson: Lesson, _rng: random.Random) -> Pieces:
    """Write a program whose output is the answer, in place of an answer."""
    return [(f"{THINK_CLOSE}\n\n```python\n{lesson.code.strip()}\n```<|end|>", True)]


FORMATS = {"long": long, "short": short, "direct": direct, "plan": plan, "code": code}
