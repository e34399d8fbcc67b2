"""Drills: copying, spelling, comparing, dividing: what families need and reasoning alone teaches a small model late.

A model learns to find the place in the question where it is and to copy what follows (an induction head) only
where many tokens depend on that and nothing else. In the traces few do; in a drill all do. The same holds for
which of two numbers is larger, and how often one goes into another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from teacher import THINK_CLOSE, Pieces

Drill = tuple[str, Pieces]
"""The question and what follows the prompt."""


def _answer(text: str) -> Pieces:
    return [(f"{THINK_CLOSE}\n\n{text}<|end|>", True)]


def copy(words: Sequence[str], rng: random.Random) -> Drill:
    """Copy random words and numbers."""
    count = rng.randrange(4, 40)
    chosen = [str(rng.randrange(1000)) if rng.random() < 0.15 else rng.choice(words) for _ in range(count)]
    text = " ".join(chosen)
    return f"Copy: {text}", _answer(text)


def copy_lines(words: Sequence[str], rng: random.Random) -> Drill:
    """Write each word of a text on a line of its own, as counting letters does."""
    chosen = [rng.choice(words) for _ in range(rng.randrange(3, 16))]
    return f'List: "{" ".join(chosen)}"', _answer("\n".join(f"- {word}" for word in chosen))


def spell(words: Sequence[str], rng: random.Random) -> Drill:
    """Spell words."""
    chosen = [rng.choice(words) for _ in range(rng.randrange(1, 8))]
    lines = [f"- {word}: {' '.join(word.lower())}" for word in chosen]
    return f'Spell: "{" ".join(chosen)}"', _answer("\n".join(lines))


def look_up(words: Sequence[str], rng: random.Random) -> Drill:
    """Say what was said about a name: the pairs are given once, and asked for in another order."""
    keys = rng.sample(sorted(set(words)), rng.randrange(2, 10))
    pairs = {key: rng.choice(words) for key in keys}
    asked = rng.sample(keys, len(keys))
    given = ", ".join(f"{key} has {value}" for key, value in pairs.items())
    return f"{given}. Look up: {', '.join(asked)}", _answer("\n".join(f"{key} has {pairs[key]}" for key in asked))


def compare(words: Sequence[str], rng: random.Random) -> Drill:  # noqa: ARG001  # one signature for all
    """Compare a number with others, as sorting does."""
    span, tenths = rng.choice([(10, False), (100, False), (100, False), (100, True)])

    def number() -> float:
        return rng.randrange(-10 * span, 10 * span) / 10 if tenths else rng.randrange(-span, span)

    one = number()
    others = [one if rng.random() < 0.05 else number() for _ in range(rng.randrange(3, 14))]
    lines = [f" {other}{'<' if other < one else '>' if other > one else '='}" for other in others]
    return f"Compare with {one}: {', '.join(map(str, others))}", _answer("".join(lines))


def divide(words: Sequence[str], rng: random.Random) -> Drill:  # noqa: ARG001
    """Say how often a number goes into another, up to nine times, as solving equations does."""
    pairs = []
    for _ in range(rng.randrange(3, 12)):
        divisor = rng.randrange(2, 31)
        pairs.append((rng.randrange(divisor, 10 * divisor), divisor))
    asked = ", ".join(f"{top}/{bottom}" for top, bottom in pairs)
    return f"Divide: {asked}", _answer("\n".join(f"{top}/{bottom}={top // bottom}" for top, bottom in pairs))


DRILLS: list[Callable[[Sequence[str], random.Random], Drill]] = [copy, copy_lines, spell, look_up, compare, divide]
