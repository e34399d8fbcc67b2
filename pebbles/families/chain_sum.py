"""Sums and differences of a few numbers, worked from term to term."""

from __future__ import annotations

from typing import Any

from arithmetic import Scratch, miscopies
from lesson import Lesson, Route


def _terms(expression: str) -> list[str]:
    """Return the terms with their signs, as in ``["+4", "-1"]``."""
    tokens = ["+", *expression.split()]
    flipped = {"+": "-", "-": "+"}
    return [
        (flipped[sign] if number.startswith("-") else sign) + number.lstrip("-")
        for sign, number in zip(tokens[::2], tokens[1::2], strict=True)
    ]


def _copy(s: Scratch, term: str, first: bool = False) -> str:
    """Write a term of the question, the first one without its plus, and return it."""
    sign, wrong = term[0], miscopies(int(term[1:]))
    if first:
        sign = sign.removeprefix("+")
        return s.choose(sign + term[1:], [sign + digits for digits in wrong])
    other = "-" if sign == "+" else "+"
    return s.choose(term, [*(sign + digits for digits in wrong), other + term[1:]])


def _step(s: Scratch, total: int, term: str) -> int:
    """Write the rest of the line that opens with ``total`` and the signed ``term``, and return their sum."""
    a, b, down = abs(total), int(term[1:]), term[0] == "-"
    if total >= 0 and not down:
        s.write(": ")
        return s.add(a, b)
    if total < 0 and down:
        s.write(f"=-({a}+{b}): ")
        return s.add(a, b, negative=True)
    negative = a > b if total < 0 else b > a
    difference = f"{max(a, b)}-{min(a, b)}"
    # the difference is written again only where the line does not show it already
    s.write(": " if total >= 0 and not negative else f"=-({difference}): " if negative else f"={difference}: ")
    return s.subtract(max(a, b), min(a, b), negative)


def _run(s: Scratch, terms: list[str]) -> int:
    total = int(_copy(s, terms[0], first=True))
    if len(terms) == 1:
        s.write("\n")
    for number, term in enumerate(terms[1:]):
        if number:
            s.write(str(total))
        total = _step(s, total, _copy(s, term))
    return total


def lesson(item: dict[str, Any]) -> Lesson:
    """Return the lesson for one item of chain_sum."""
    expression = item["metadata"]["expression"]
    terms = _terms(expression)
    plus, minus = [t for t in terms if t[0] == "+"], ["+" + t[1:] for t in terms if t[0] == "-"]

    def grouped(s: Scratch) -> int:
        gain, loss = _run(s, plus), _run(s, minus)
        return s.combine(gain, -loss)

    routes: list[tuple[str, Route]] = [("going left to right", lambda s: _run(s, terms))]
    if 1 < len(terms) < 4:
        routes.append(("going from the end", lambda s: _run(s, terms[:0:-1] + terms[:1])))
    if plus and minus and len(terms) == 3:
        routes.append(("adding the pluses and the minuses", grouped))
    return Lesson(
        question=item["question"].strip(),
        answer=str(item["answer"]),
        routes=routes,
        plan=[
            f"Start with {terms[0].removeprefix('+')}.",
            f"Go on with {' '.join(terms[1:])}, one term a line." if terms[1:] else "There is nothing to add to it.",
            "Write each line column by column with its carry.",
        ],
        code=f"print({expression})",
    )
