"""Word problems from gsm_symbolic: one small step a line, each with its working digit by digit.

A step such as ``total: cooking 36 + peeling 9: 6+9=15, 3+1=4 -> 45`` names what it finds and repeats, with its name,
each earlier result that it uses, so that a model only has to copy it. Percents are a product and a quotient by 100,
fractions a quotient and a product, and decimals are rewritten in whole units before anything is done to them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from arithmetic import Scratch
from gsm_recipes import RECIPES
from lesson import Lesson, Route

OPERATORS = re.compile(r"([-+*/@#])")
DAYS_IN = {"week": 7, "month": 30}
LENGTHS = {("feet", "yards"): 3, ("meters", "meters"): 1}


@dataclass(frozen=True)
class Step:
    """One line of a recipe; ``operators[i]`` stands before ``operands[i + 1]``, a number or the name of a step."""

    name: str
    operands: tuple[str | Fraction, ...]
    operators: str


def _number(value: object) -> Fraction:
    if value == "half":
        return Fraction(1, 2)
    if isinstance(value, float):
        return Fraction(value).limit_denominator(1000)
    return Fraction(str(value))


def _derived(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Add the few numbers of the question that the variables only imply."""
    known = dict(variables)
    if "fraction_dropped" in known:
        known["dropped"] = known["initial_count"] - known["remaining"]
    if "time_period" in known:
        known["days"] = DAYS_IN[known["time_period"]]
    if "length_converted" in known:
        known["per_unit"] = LENGTHS[(known["unit1"], known["unit2"])]
    return known


def _parse(recipe: str, variables: Mapping[str, Any]) -> list[Step]:
    known, steps = _derived(variables), []
    names: set[str] = set()
    for line in recipe.split("; "):
        name, _, right = line.partition("=")
        first, *rest = OPERATORS.split(right)
        operands: list[str | Fraction] = []
        operators = ""
        for operator, part in zip(["", *rest[::2]], [first, *rest[1::2]], strict=True):
            variable, _, index = part.partition(".")
            if part in names or part.isdigit():
                operands.append(part if part in names else Fraction(part))
                operators += operator
            elif index == "all":
                operands += [_number(value) for value in known[variable]]
                operators += "+" * (len(known[variable]) - 1)
            else:
                value = _number(known[variable][int(index)] if index else known[variable])
                if operator != "*" or value.denominator == 1:
                    operands.append(value)
                    operators += operator
                    continue
                if value.numerator > 1:  # multiplying first keeps it exact
                    operands.append(Fraction(value.numerator))
                    operators += "*"
                operands.append(Fraction(value.denominator))
                operators += "/"
        steps.append(Step(name, tuple(operands), operators))
        names.add(name)
    return steps


def _decimal(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


class _Page:
    """The working of one route: what has been found so far, and how each step is written."""

    def __init__(self, scratch: Scratch, swapped: bool) -> None:
        self.scratch, self.swapped = scratch, swapped
        self.found: dict[str, int | str] = {}

    def _value(self, operand: str | Fraction) -> Fraction:
        return Fraction(self.found[operand]) if isinstance(operand, str) else operand

    def _named(self, operand: str | Fraction) -> str:
        return f"{operand} {self.found[operand]}" if isinstance(operand, str) else _decimal(operand)

    def step(self, step: Step) -> None:
        """Write one step and keep what comes out."""
        operands, operators = list(step.operands), step.operators
        if self.swapped and set(operators) == {"+"}:
            operands.reverse()
        elif self.swapped and operators.startswith("*"):
            operands[:2] = operands[1::-1]
        elif self.swapped and set(operators) == {"-"}:
            operands[1:] = operands[:0:-1]
        self.scratch.write(f"{step.name}: {self._named(operands[0])}")
        if operators in {"@", "#"}:
            self.found[step.name] = self._rescaled(operators, self._value(operands[0]), int(self._value(operands[1])))
            return
        for operator, operand in zip(operators, operands[1:], strict=True):
            self.scratch.write(f" {operator} {self._named(operand)}")
        self.scratch.write(":")
        numbers = [int(self._value(operand)) for operand in operands]
        total = numbers[0]
        for i, (operator, number) in enumerate(zip(operators, numbers[1:], strict=True)):
            if i:
                self.scratch.write(f"{total}{operator}{number}:")
            total = self._work(operator, total, number)
        self.found[step.name] = total

    def _rescaled(self, operator: str, value: Fraction, units: int) -> int | str:
        self.scratch.write(" rounded -> " if units == 1 else f" {'*' if operator == '@' else '/'} {units} -> ")
        found: int | str
        if operator == "@":
            found = self.scratch.result(round(value * units))
        else:
            wrong = [_decimal(value / units * 10), _decimal((value + units) / units)]
            found = self.scratch.choose(_decimal(value / units), wrong)
        self.scratch.write("\n")
        return found

    def _work(self, operator: str, a: int, b: int) -> int:
        if operator in "+-":
            return self._sum(a, b if operator == "+" else -b)
        value = self._product(abs(a), abs(b)) if operator == "*" else self._quotient(abs(a), abs(b))
        if (a < 0) == (b < 0) or not value:
            return value
        self.scratch.write(f"minus: {-value}\n")  # only after a slip
        return -value

    def _sum(self, total: int, term: int) -> int:
        """Write ``total + term``; only after a slip is either negative or the difference below nothing."""
        self.scratch.write(" ")
        if total < 0 or total + term < 0:
            return self.scratch.combine(total, term)
        return self.scratch.add(total, term) if term >= 0 else self.scratch.subtract(total, -term)

    def _product(self, a: int, b: int) -> int:
        """Write ``a * b``; zeros at the end are put aside, and the shorter factor goes digit by digit."""
        zeros = 0
        factors = []
        for factor in (a, b):
            bare = int(str(factor).rstrip("0") or "0")
            zeros += len(str(factor)) - len(str(bare))
            factors.append(bare)
        top, bottom = factors
        if (bottom > 9 and top < 10) or top == 1:
            top, bottom = bottom, top
        if bottom == 1 and zeros:
            return self._moved(top * 10**zeros)
        if bottom < 10:
            self.scratch.write(" ")
            return self.scratch.times_digit(top, bottom, zeros)
        self.scratch.write("\n")
        product = self.scratch.multiply(top, bottom)
        if not zeros:
            return product
        self.scratch.write(f"{product}*{10**zeros}")
        return self._moved(product * 10**zeros)

    def _moved(self, value: int) -> int:
        """Write a number that is only another one with its digits moved."""
        self.scratch.write(" -> ")
        value = self.scratch.result(value)
        self.scratch.write("\n")
        return value

    def _quotient(self, a: int, b: int) -> int:
        """Write ``a / b``; zeros that both end in are dropped, and a power of ten only moves the digits."""
        if b == 0:  # only after a slip
            self.scratch.write(f" -> {a}\n")
            return a
        zeros = 1
        while a and a // zeros % 10 == b // zeros % 10 == 0:
            zeros *= 10
        a, b = a // zeros, b // zeros
        if set(str(b)) <= {"0", "1"} and str(b).count("1") == 1:
            return self._moved(a // b)
        self.scratch.write(f" {a}/{b}: " if zeros > 1 else " ")
        return self.scratch.divide(a, b)


def _backwards(steps: list[Step]) -> list[Step]:
    """Return the steps in another order: from the goal, each with what it needs, its last operand first."""
    by_name = {step.name: step for step in steps}
    order: list[Step] = []

    def need(step: Step) -> None:
        for operand in reversed(step.operands):
            if isinstance(operand, str):
                need(by_name[operand])
        if step not in order:
            order.append(step)

    need(steps[-1])
    return order


def _route(steps: list[Step], swapped: bool) -> Route:
    def route(scratch: Scratch) -> int | str:
        scratch.hasty = (
            False  # prices have three digits at every level, and haste is to cost little but at the hard one
        )
        page = _Page(scratch, swapped)
        for step in steps:
            page.step(step)
        return page.found[steps[-1].name]

    return route


def _said(step: Step) -> str:
    """Return the right side of a step with the names of what it uses."""
    first, *others = [operand if isinstance(operand, str) else _decimal(operand) for operand in step.operands]
    if step.operators == "@" and others == ["1"]:
        return f"{first} rounded"
    signs = step.operators.replace("@", "*").replace("#", "/")
    return "".join([first, *(f" {sign} {other}" for sign, other in zip(signs, others, strict=True))])


def _plan(steps: list[Step]) -> list[str]:
    lines = [f"{step.name}: {_said(step)}" for step in steps]
    size = -(-len(lines) // 5)
    plan = ["; ".join(lines[i : i + size]) for i in range(0, len(lines), size)]
    return plan if len(plan) > 1 else [*plan, f"give {steps[-1].name}"]


def _code(steps: list[Step]) -> str:
    lines = []
    for step in steps:
        right = _said(step)
        if step.operators == "@":
            right = f"round({right.removesuffix(' rounded')})"
        lines.append(f"{step.name} = {right if step.operators in '@#' else right.replace('/', '//')}")
    name = steps[-1].name
    shown = f'str({name}).removesuffix(".0")' if steps[-1].operators == "#" else name
    return "\n".join([*lines, f"print({shown})"])


def _steps(variables: Mapping[str, Any], answer: str) -> list[Step] | None:
    """Return the steps of the recipe that fits the variables, if they lead to the answer."""
    for key, recipe in RECIPES.items():
        if key in variables:
            try:
                steps = _parse(recipe, variables)
                if str(_route(steps, False)(Scratch(random.Random(0)))) == answer:
                    return steps
            except (KeyError, ValueError, IndexError):  # another version of the template
                return None
    return None


def lesson(item: dict[str, Any]) -> Lesson:
    """Return the lesson for one gsm_symbolic item; the answer is written without a needless ``.0``."""
    question, answer = item["question"].strip(), _decimal(Fraction(item["answer"]))
    metadata = item["metadata"]
    steps = _steps(metadata["variables"], answer)
    if steps is None:
        return Lesson(question, answer, routes=[], plan=[], code="")
    routes = [
        ("solving it step by step", _route(steps, False)),
        ("working in another order", _route(_backwards(steps), True)),
    ]
    return Lesson(question, answer, routes, _plan(steps), _code(steps))
