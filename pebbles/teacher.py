"""Teacher traces: what a careful but overthinking reasoner would write for a lesson, in five formats.

A trace is a list of pieces ``(text, is a training target)``. Pieces that a model should cope with but
never learn to produce (a planted slip, a premature end of thinking) are not targets.
"""

from __future__ import annotations

import random

from arithmetic import Scratch
from lesson import Check, Lesson, Route

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


HASTE = 0.9
"""How often a first working is hasty. More than half, or greedy decoding, which takes the likelier way, never slips."""


def derive(route: Route, rng: random.Random, slip: bool = False, hasty: bool = False) -> tuple[Pieces, str]:
    """Write a route, with one planted slip if asked for, or hastily; return the working and what came out."""
    slip_at = None
    if slip:
        probe = Scratch(rng)
        route(probe)
        slip_at = rng.randrange(probe.results) if probe.results else None
    page = Scratch(rng, slip_at=slip_at, hasty=hasty)
    value = str(route(page))
    return page.pieces, value


def first_working(lesson: Lesson, rng: random.Random, slip: bool = False) -> tuple[Pieces, str]:
    """Write the natural route as one does who has not yet had reason to be careful."""
    return derive(lesson.routes[0][1], rng, slip, rng.random() < HASTE)


def long_thinking(lesson: Lesson, rng: random.Random, slip_rate: float = 0.25) -> tuple[list[Pieces], list[str]]:
    """Write paragraphs that solve, check, repair and ruminate.

    How much is reflected is drawn independently of how hard the problem is: that is the overthinking. What is worth
    something in it is that a result which a check refutes, or another route does not reach, is worked out again until
    two routes agree or the check is satisfied.

    Returns:
        The paragraphs, and for each the answer that stands once it is written.
    """
    while True:
        paragraphs, standing = _reflected(lesson, rng, slip_rate)
        # two slips may agree
        if standing[-1] == standing_without_slips(lesson):
            return paragraphs, standing


def standing_without_slips(lesson: Lesson) -> str:
    """Return what the natural route gives."""
    return derive(lesson.routes[0][1], random.Random(0))[1]


def _reflected(lesson: Lesson, rng: random.Random, slip_rate: float) -> tuple[list[Pieces], list[str]]:
    paragraphs: list[Pieces] = []
    standing: list[str] = []

    def finish(pieces: Pieces, answer: str) -> None:
        paragraphs.append(pieces)
        standing.append(answer)

    (_, first), *others = lesson.routes
    pieces, value = first_working(lesson, rng, rng.random() < slip_rate)
    finish([*pieces, (f"So the answer is {value}.", True)], value)
    agreed = False
    # after two checks an end is likelier than anything else, or greedy decoding would reflect for ever
    for _ in range(rng.choices([1, 2, 3], weights=[4, 5, 1])[0]):
        check = rng.choice(lesson.checks) if lesson.checks and rng.random() < 0.7 else None
        if check:
            name, results = check[0], {value}
            working, fits = _checked(check[1], value, rng)
            refuted = "But this does not fit."
        else:
            name, route = rng.choice(others or [("going through it again", first)])
            working, second = derive(route, rng, rng.random() < (slip_rate / 4 if agreed else slip_rate))
            fits, results = second == value, {value, second}
            refuted = f"But this gives {second}, not {value}."
        opening = (rng.choice(CHECK_OPENINGS).format(route=name) + "\n", True)
        if fits:
            agreed = True
            finish([opening, *working, (rng.choice(AGREEMENTS).format(value=value), True)], value)
            continue
        finish([opening, *working, (refuted + " Let me work it out once more.", True)], value)
        for attempt in range(3):
            again, result = derive(first, rng, attempt < 2 and rng.random() < slip_rate / 2)
            if check:
                tested, settled = _checked(check[1], result, rng)
                again, verdict = [*again, *tested], "But this does not fit either. Let me work it out once more."
            else:
                settled, verdict = result in results, f"That is another result, {result}. Let me work it out once more."
                results.add(result)
            if settled or attempt == 2:
                value = result
                finish([*again, (f"So {value} is right. The answer is {value}.", True)], value)
                break
            finish([*again, (verdict, True)], value)
        agreed = True
    if rng.random() < 0.25:
        finish([(rng.choice(MUSINGS).format(value=value), True)], value)
    return paragraphs, standing


def _checked(check: Check, claimed: str, rng: random.Random) -> tuple[Pieces, bool]:
    page = Scratch(rng)
    fits = check(page, claimed)
    return page.pieces, fits


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
    working, value = first_working(lesson, rng)
    if rng.random() < 0.1:
        return [*_cut(working, rng), *answered(lesson.answer, close=False)]
    return [*working, (f"So the answer is {value}.\n", True), *answered(value)]


def direct(lesson: Lesson, _rng: random.Random) -> Pieces:
    """Write the answer only."""
    return answered(lesson.answer)


def plan(lesson: Lesson, rng: random.Random) -> Pieces:
    """Write a numbered plan, then its execution."""
    steps = "".join(f"{i}. {step}\n" for i, step in enumerate(lesson.plan, 1))
    working, value = first_working(lesson, rng)
    return [(f"Plan:\n{steps}\n", True), *working, (f"So the answer is {value}.\n", True), *answered(value)]


def code(lesson: Lesson, _rng: random.Random) -> Pieces:
    """Write a program whose output is the answer, in place of an answer."""
    return [(f"{THINK_CLOSE}\n\n```python\n{lesson.code.strip()}\n```<|end|>", True)]


FORMATS = {"long": long, "short": short, "direct": direct, "plan": plan, "code": code}
