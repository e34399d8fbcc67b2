"""Drills: copying and spelling, which every family needs and which reasoning alone teaches a small model late.

A model learns to find the place in the question where it is and to copy what follows (an induction head) only
where many tokens depend on that and nothing else. In the traces few do; in a drill all do.
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


DRILLS: list[Callable[[Sequence[str], random.Random], Drill]] = [copy, copy_lines, spell, look_up]
