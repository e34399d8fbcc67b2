"""The legs of a herd: each animal's legs are recalled, multiplied and added to the sum so far."""

from __future__ import annotations

from typing import Any

from reasoning_gym.arithmetic.leg_counting import ANIMALS

from arithmetic import Scratch, miscopies
from lesson import Lesson, Route

LEGS = sorted(set(ANIMALS.values()))


def _product(s: Scratch, count: int, each: int, swapped: bool) -> int:
    """Write ``count * each`` behind a colon: with columns where one of them is a digit, else in rows."""
    if count < 10 and (swapped or each > 9):
        return s.times_digit(each, count)
    if each < 10:
        return s.times_digit(count, each)
    if each == 10:
        return s.times_digit(count, 1, zeros=1)
    s.write("\n")
    return s.multiply(count, each)


def _count(s: Scratch, herd: list[tuple[str, int]], swapped: bool = False) -> int:
    total = None
    for animal, number in herd:
        count = int(s.choose(str(number), miscopies(number)))
        s.write(f" {animal}{'s' if number > 1 else ''}, ")
        each = ANIMALS[animal]
        each = int(s.choose(str(each), [str(legs) for legs in LEGS if legs != each]))
        s.write(" legs: ")
        legs = _product(s, count, each, swapped)
        if total is None:
            total = legs
            continue
        s.write(f"{total}+")
        legs = int(s.choose(str(legs), miscopies(legs)))
        s.write(": ")
        total = s.add(total, legs)
    assert total is not None
    return total


def lesson(item: dict[str, Any]) -> Lesson:
    """Return the lesson for one item of leg_counting."""
    herd = list(item["metadata"]["animals"].items())
    routes: list[tuple[str, Route]] = [("going through the list", lambda s: _count(s, herd))]
    if len(herd) < 4:
        routes.append(("going from the end", lambda s: _count(s, herd[::-1], swapped=True)))
    names = [animal.replace(" ", "_") for animal, _ in herd]
    return Lesson(
        question=item["question"].strip(),
        answer=str(item["answer"]),
        routes=routes,
        plan=[
            f"Go through {', '.join(animal for animal, _ in herd)}.",
            "For each, multiply how many there are by the legs of one.",
            "Add it to the legs so far.",
        ],
        code="\n".join(
            [f"{name} = {number} * {ANIMALS[animal]}" for name, (animal, number) in zip(names, herd, strict=True)]
            + [f"print({' + '.join(names)})"]
        ),
    )
