"""A lesson: one problem with everything that the teacher can write about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from arithmetic import Scratch

Route = Callable[[Scratch], int | str]
Check = Callable[[Scratch, str], bool]


@dataclass(frozen=True)
class Lesson:
    """One problem with the ways in which it can be solved and checked.

    Attributes:
        question: as reasoning-gym words it.
        answer: the reference answer, in the words in which it stands in the final box.
        routes: (name of the route, how to write it and what comes out); the first is the natural one. The name
            completes "Let me check by ...". Long workings have no other one, which would break more than it
            repairs: they are gone through again. None for a problem that is beyond its family. A route writes whole
            lines (each ends in a newline), no blank line, and every elementary result goes through `Scratch.result` or
            `Scratch.choose`, so that a slip can be planted there; after a slip it goes on with the wrong value, as a
            model would.
        checks: (name, how to write it and whether the claimed answer stands): cheaper than a route.
        plan: the steps of the natural route in words, one short line each, without working anything out.
        code: a small Python program that prints the answer, computing it from the data of the question.
    """

    question: str
    answer: str
    routes: list[tuple[str, Route]]
    plan: list[str]
    code: str
    checks: list[tuple[str, Check]] = field(default_factory=list)
