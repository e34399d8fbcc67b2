"""Knights and knaves: write down who says what, then try the cases until every statement fits its speaker.

A statement is judged in place: each part is copied with T or F behind it, each bracket closes with its own value, so
that no step looks at more than two values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

from arithmetic import Scratch
from lesson import Check, Lesson, Route

Value = TypeVar("Value")
Case = tuple[bool, ...]

LINKS = {"and": "and", "or": "or", "if": "then", "iff": "iff", "not": ""}
OPERATORS = {"and": "and", "or": "or", "->": "if", "<=>": "iff", "not": "not"}
PYTHON = {"and": " and ", "or": " or ", "iff": " == "}
ROLE = re.compile(r"(?:and )?(\w+) is an? (\w+)")


@dataclass(frozen=True)
class Claim:
    """What somebody says: that a person is a knight or a knave (``is``), or claims joined by an operator."""

    operator: str
    parts: tuple[Claim, ...] = ()
    person: int = 0
    knight: bool = True


@dataclass(frozen=True)
class Puzzle:
    """Who says what, in the puzzle's own words; ``roles`` and ``articles`` hold the knave's word first."""

    names: list[str]
    roles: tuple[str, str]
    articles: tuple[str, str]
    claims: list[Claim]

    def sentence(self, case: Case) -> str:
        words = [f"{name} is {self.articles[knight]}" for name, knight in zip(self.names, case, strict=True)]
        return ", ".join(words[:-1]) + f", and {words[-1]}"

    def header(self, case: Case) -> str:
        return ", ".join(f"{name} {self.roles[knight]}" for name, knight in zip(self.names, case, strict=True))


def _read(statement: Sequence[Any]) -> Claim:
    operator = statement[0]
    if operator in ("telling-truth", "lying"):
        return Claim("is", person=int(statement[1]), knight=operator == "telling-truth")
    parts = tuple(_read(part) for part in statement[1:])
    if operator == "not" and statement[1][0] in ("telling-truth", "lying"):  # the question words it as the other role
        return Claim("is", person=parts[0].person, knight=not parts[0].knight)
    return Claim(OPERATORS[operator], parts)


def _walk(
    s: Scratch, claim: Claim, leaf: Callable[[Claim], Value], join: Callable[[Claim, list[Value]], Value]
) -> Value:
    """Write a claim from left to right: leaves by ``leaf``, what stands behind an operator's parts by ``join``."""
    if claim.operator == "is":
        return leaf(claim)
    if claim.operator in ("if", "not"):
        s.write(f"{claim.operator} ")
    values = []
    for number, part in enumerate(claim.parts):
        if number:
            s.write(f" {LINKS[claim.operator]} ")
        inner = part.operator != "is"
        if inner:
            s.write("(")
        values.append(_walk(s, part, leaf, join))
        if inner:
            s.write(")")
    return join(claim, values)


def _copied(s: Scratch, puzzle: Puzzle, claim: Claim) -> Claim:
    """Write a claim as the question has it; a slip takes another name or role, and the claim is then that one."""

    def leaf(one: Claim) -> Claim:
        others = [Claim("is", person=one.person, knight=not one.knight)]
        others += [Claim("is", person=p, knight=one.knight) for p in range(len(puzzle.names)) if p != one.person]
        by_text = {f"{puzzle.names[c.person]} {puzzle.roles[c.knight]}": c for c in [one, *others]}
        texts = list(by_text)
        return by_text[s.choose(texts[0], texts[1:])]

    return _walk(s, claim, leaf, lambda one, parts: Claim(one.operator, tuple(parts)))


def _truth(s: Scratch, value: bool) -> bool:
    return s.choose("FT"[value], ["TF"[value]]) == "T"


def _join(operator: str, values: list[bool]) -> bool:
    if operator == "if":
        return not values[0] or values[1]
    if operator == "iff":
        return values[0] == values[1]
    if operator == "not":
        return not values[0]
    return all(values) if operator == "and" else any(values)


def _judged(s: Scratch, puzzle: Puzzle, claim: Claim, case: Case) -> bool:
    """Write a claim with the value of each part in this case."""

    def leaf(one: Claim) -> bool:
        s.write(f"{puzzle.names[one.person]} {puzzle.roles[one.knight]} ")
        return _truth(s, case[one.person] == one.knight)

    def join(one: Claim, values: list[bool]) -> bool:
        s.write(" = ")
        return _truth(s, _join(one.operator, values))

    return _walk(s, claim, leaf, join)


def _fits(s: Scratch, puzzle: Puzzle, claims: dict[int, Claim], case: Case) -> bool:
    """Write one line a speaker, up to the first whose statement does not fit."""
    for person, claim in claims.items():
        s.write(f"{puzzle.names[person]} needs ")
        needed = _truth(s, case[person])
        s.write(": ")
        right, other = ("ok", "no") if _judged(s, puzzle, claim, case) == needed else ("no", "ok")
        s.write(" ")
        verdict = s.choose(right, [other])
        s.write("\n")
        if verdict == "no":
            return False
    return True


def _search(puzzle: Puzzle, speakers: Iterable[int], cases: list[Case]) -> Route:
    order = list(speakers)

    def route(s: Scratch) -> str:
        claims = {}
        for person in order:
            s.write(f"{puzzle.names[person]} says: ")
            claims[person] = _copied(s, puzzle, puzzle.claims[person])
            s.write("\n")
        for case in cases[:-1]:
            s.write(f"Try {puzzle.header(case)}\n")
            if _fits(s, puzzle, claims, case):
                return puzzle.sentence(case)
        s.write(f"Left {puzzle.header(cases[-1])}\n")  # one case always fits, so the last needs no trying
        return puzzle.sentence(cases[-1])

    return route


def _claimed(puzzle: Puzzle, answer: str) -> Case | None:
    found = {}
    parts = answer.strip().rstrip(".").split(", ")
    for part in parts:
        match = ROLE.fullmatch(part.strip())
        if match is None or match[2] not in puzzle.roles:
            return None
        found[match[1]] = match[2] == puzzle.roles[1]
    if len(parts) != len(puzzle.names) or set(found) != set(puzzle.names):
        return None
    return tuple(found[name] for name in puzzle.names)


def _substitution(puzzle: Puzzle) -> Check:
    def check(s: Scratch, answer: str) -> bool:
        case = _claimed(puzzle, answer)
        if case is None:
            s.write("Not everyone has one role\n")
            return False
        s.write(f"Try {puzzle.header(case)}\n")
        return _fits(s, puzzle, dict(enumerate(puzzle.claims)), case)

    return check


def _expression(puzzle: Puzzle, claim: Claim) -> str:
    """Return a claim as a Python expression in brackets, with a variable for each person."""
    if claim.operator == "is":
        name = puzzle.names[claim.person]
        return name if claim.knight else f"(not {name})"
    parts = [_expression(puzzle, part) for part in claim.parts]
    if claim.operator == "not":
        return f"(not {parts[0]})"
    if claim.operator == "if":
        return f"(not {parts[0]} or {parts[1]})"
    return f"({PYTHON[claim.operator].join(parts)})"


def _code(puzzle: Puzzle) -> str:
    names = puzzle.names
    said = " and ".join(f"{n} == {_expression(puzzle, c)}" for n, c in zip(names, puzzle.claims, strict=True))
    words = [f"{name} is {{role[{name}]}}" for name in names]
    return (
        "from itertools import product\n"
        f'role = ["{puzzle.articles[0]}", "{puzzle.articles[1]}"]\n'
        f"for {', '.join(names)} in product([True, False], repeat={len(names)}):\n"
        f"    if {said}:\n"
        f'        print(f"{", ".join(words[:-1])}, and {words[-1]}")\n'
    )


def lesson(item: dict[str, Any]) -> Lesson:
    """Return the lesson for one item of reasoning-gym's knights_knaves."""
    metadata = item["metadata"]
    terms = {key: str(word) for key, word in metadata["knight_knave_terms"].items()}
    puzzle = Puzzle(
        [str(name) for name in metadata["names"]],
        (terms["knave"], terms["knight"]),
        (terms["a_knave"], terms["a_knight"]),
        [_read(statement) for statement in metadata["statements"]],
    )
    people = range(len(puzzle.names))
    cases = list(product((True, False), repeat=len(people)))
    return Lesson(
        question=item["question"].strip(),
        answer=item["answer"].strip().rstrip("."),
        routes=[
            ("trying the cases in order", _search(puzzle, people, cases)),
            (f"starting with all {terms['knave']}s", _search(puzzle, people[::-1], cases[::-1])),
        ],
        plan=[
            f"Write down what {' and '.join(puzzle.names)} say.",
            f"Try the cases, all {terms['knight']}s first.",
            f"A {terms['knight']} needs T, a {terms['knave']} needs F.",
            "Keep the case that fits everyone.",
        ],
        code=_code(puzzle),
        checks=[("putting the roles into the statements", _substitution(puzzle))],
    )
