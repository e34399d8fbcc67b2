"""Sorting numbers: put one after the other into a growing list, comparing with one number of it at a time.

The working leaves out a final ``.0``, which only the answer needs.
"""

from __future__ import annotations

import ast
from itertools import pairwise
from typing import Any

from arithmetic import Scratch
from lesson import Check, Lesson, Route


def _short(number: str) -> str:
    return number.removesuffix(".0")


def _answer(numbers: list[str]) -> str:
    return str([number if "." in number else f"{number}.0" for number in numbers])


def _sign(a: str, b: str) -> str:
    return "<" if float(a) < float(b) else ">" if float(a) > float(b) else "="


def _compare(s: Scratch, a: str, b: str) -> str:
    right = _sign(a, b)
    return s.choose(right, [sign for sign in "<>" if sign != right])


def _miscopied(number: str) -> list[str]:
    """Return what a slip makes of a number: the other sign, or its last digit off by one."""
    last = int(number[-1])
    return [
        number[1:] if number.startswith("-") else f"-{number}",
        f"{number[:-1]}{last + 1 if last < 9 else last - 1}",
    ]


def _insert(s: Scratch, numbers: list[str], stop: str) -> list[str]:
    """Write the insertion of each number before the first in the list that stands in relation ``stop`` to it."""
    s.write(f"stop at {stop}\n")
    done: list[str] = []
    for source in numbers:
        s.write("put ")
        number = s.choose(source, _miscopied(source))
        s.write(":")
        place = len(done)
        for index, other in enumerate(done):
            s.write(f" {other}")
            if _compare(s, other, number) == stop:
                place = index
                break
        s.write(" -> ")
        done = _listed(s, [*done[:place], number, *done[place:]], place)
        s.write("\n")
    return done


def _listed(s: Scratch, numbers: list[str], place: int) -> list[str]:
    """Write the list; a slip forgets a number of it or puts the new one, which is at ``place``, one too late."""
    wrong = []
    if len(numbers) > 1:
        wrong.append(numbers[:-1] if place < len(numbers) - 1 else numbers[1:])
    if place < len(numbers) - 1:
        wrong.append([*numbers[:place], numbers[place + 1], numbers[place], *numbers[place + 2 :]])
    by_text = {", ".join(one): one for one in [numbers, *wrong]}
    text, *others = by_text
    if not others:  # one number in a list of its own
        s.write(text)
        return numbers
    return by_text[s.choose(text, others)]


def _forwards(numbers: list[str], ascending: bool) -> Route:
    def route(s: Scratch) -> str:
        return _answer(_insert(s, numbers, ">" if ascending else "<"))

    return route


def _backwards(numbers: list[str], ascending: bool) -> Route:
    """Take the last number first, sort the other way round and turn the list over at the end."""

    def route(s: Scratch) -> str:
        done = _insert(s, numbers[::-1], "<" if ascending else ">")
        s.write("reversed: ")
        done = _listed(s, done[::-1], 0)
        s.write("\n")
        return _answer(done)

    return route


def _claimed(answer: str) -> list[str] | None:
    try:
        numbers = ast.literal_eval(answer.strip())
        if not isinstance(numbers, list) or not all(isinstance(number, str) for number in numbers):
            return None
        [float(number) for number in numbers]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return [_short(number.strip()) for number in numbers]


def _in_order(numbers: list[str], ascending: bool) -> Check:
    """Find each given number in the answer, then compare its neighbours; both are numbered, so the counts show."""

    def check(s: Scratch, answer: str) -> bool:
        claimed = _claimed(answer)
        if not claimed:
            s.write("This is no list of numbers\n")
            return False
        s.write("given")
        left = list(claimed)
        for count, number in enumerate(numbers, 1):
            s.write(f" ({count}) {number} ")
            found = s.choose(*(("yes", ["no"]) if number in left else ("no", ["yes"])))
            if found == "no":
                s.write("\n")
                return False
            if number in left:
                left.remove(number)
        s.write(f"\nlisted (1) {claimed[0]}")
        for count, (number, following) in enumerate(pairwise(claimed), 2):
            s.write(" ")
            sign = _compare(s, number, following)
            s.write(f" ({count}) {following}")
            if sign == (">" if ascending else "<"):
                s.write(" no\n")
                return False
        s.write(f"\ncounts {len(numbers)}, {len(claimed)} ")
        right, other = ("ok", "no") if len(numbers) == len(claimed) else ("no", "ok")
        verdict = s.choose(right, [other])
        s.write("\n")
        return verdict == "ok"

    return check


def lesson(item: dict[str, Any]) -> Lesson:
    """Return the lesson for one item of reasoning-gym's number_sorting."""
    metadata = item["metadata"]
    texts = [str(number) for number in metadata["original_numbers"]]
    ascending = metadata["direction"] == "ascending"
    numbers = [_short(text) for text in texts]
    routes = [("putting the numbers in one by one", _forwards(numbers, ascending))]
    if len(numbers) < 6:
        routes.append(("starting from the last number", _backwards(numbers, ascending)))
    return Lesson(
        question=item["question"].strip(),
        answer=item["answer"].strip(),
        routes=routes,
        plan=[
            f"Put {', '.join(numbers)} into a list one by one.",
            f"Each goes before the first {'larger' if ascending else 'smaller'} one.",
            "Write the list with quotes and decimals.",
        ],
        code=f"numbers = {texts}\nprint(sorted(numbers, key=float{'' if ascending else ', reverse=True'}))\n",
        checks=[("looking at the order", _in_order(numbers, ascending))],
    )
