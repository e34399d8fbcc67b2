"""Linear equations in one unknown: move the constant, then divide by taking away multiples."""

from __future__ import annotations

import re
from typing import Any

from arithmetic import Scratch
from lesson import Lesson

# up to here a divisor is looked up whole; a larger one is rounded to guess a digit of the quotient
LARGEST_LOOKED_UP = 30
MOST_CHUNKS = 12


def _parse(equation: str, variable: str) -> tuple[int, int, int]:
    """Return the coefficient, the constant and the right side; like terms come collected from the generator."""
    left, right = equation.replace(" ", "").split("=")
    coefficient = constant = 0
    for term in re.findall(r"[+-]?[^+-]+", left):
        if term.endswith(variable):
            factor = term[: -len(variable)].rstrip("*")
            coefficient += int(factor + "1" if factor in ("", "+", "-") else factor)
        else:
            constant += int(term)
    return coefficient, constant, int(right)


def _guess(rest: int, divisor: int) -> tuple[int, int, int, int]:
    """Return what to divide by what to guess the leading digit of the quotient, the digit and its zeros."""
    zeros = len(str(rest)) - len(str(divisor))
    if divisor * 10**zeros > rest:
        zeros -= 1
    top, bottom, unit = rest // 10**zeros, divisor, 1
    while bottom > LARGEST_LOOKED_UP:
        unit *= 10
        bottom = (divisor + unit // 2) // unit
    if top < bottom * unit:  # rounded up past it: here the digit can only be 1
        return top, divisor, 1, zeros
    top //= unit
    return top, bottom, min(9, top // bottom), zeros


def _divide(s: Scratch, dividend: int, divisor: int) -> int:
    """Write ``dividend / divisor`` (not negative, positive) by taking away multiples; what is left over is dropped."""
    rest, parts = dividend, []
    for _ in range(MOST_CHUNKS):
        if rest < divisor:
            break
        if rest == divisor or (divisor < 10 and rest % divisor == 0 and rest <= 9 * divisor):
            s.write(f"{rest}/{divisor}=")
            parts.append(s.result(rest // divisor))
            s.write("\n")
            rest = 0
            break
        top, bottom, guess, zeros = _guess(rest, divisor)
        s.write(f"{rest}/{divisor}: {top}/{bottom}=")
        digit = int(s.choose(str(guess), [str(near) for near in (guess - 1, guess + 1) if 0 < near < 10]))
        s.write(f", {divisor}*{digit}{'0' * zeros}: ")
        product = s.times_digit(divisor, digit, zeros)
        while product > rest and digit > 1:
            s.write(f"{product}>{rest}, ")
            digit -= 1
            s.write(f"{divisor}*{digit}{'0' * zeros}: ")
            product = s.times_digit(divisor, digit, zeros)
        if product > rest:  # only after a slip: the multiple itself went wrong
            s.write(f"{product}>{rest}\n")
            break
        parts.append(digit * 10**zeros)
        if product == rest:
            rest = 0
            break
        s.write(f"{rest}-{product}: ")
        rest = s.subtract(rest, product)
    if rest:  # the solution is whole: something before slipped
        s.write(f"{rest} left\n")
    if len(parts) < 2:
        return parts[0] if parts else 0
    s.write("+".join(str(part) for part in parts) + "=")
    quotient = s.result(sum(parts))
    s.write("\n")
    return quotient


def lesson(item: dict[str, Any]) -> Lesson:
    """Return the lesson for one equation."""
    variable = item["metadata"]["variable"]
    coefficient, constant, right = _parse(item["metadata"]["equation"], variable)
    if not coefficient:  # "0 = 0": the generator's terms cancelled, and nothing can be taught
        return Lesson(item["question"].strip(), item["answer"], [], [], "")
    size = abs(coefficient)
    name = variable if size == 1 else f"{size}*{variable}"

    def signed_quotient(s: Scratch, value: int) -> int:
        if size == 1:
            return value
        quotient = _divide(s, abs(value), size)
        return -quotient if value < 0 else quotient

    def solve(s: Scratch) -> int:
        s.hasty = False  # as in gsm_symbolic: its numbers are as large at the default level
        # with a minus before the unknown, its term moves to the right and the right side to the left
        first, second = (right, constant) if coefficient > 0 else (constant, right)
        s.write(f"{name}=")
        if first and second:
            value = s.combine(first, -second)
        else:  # 3*x = 12 and -3*x = -12 and 5 - x = 0
            value = first - second
            s.write(f"{value}\n")
        value = signed_quotient(s, value)
        s.write(f"{variable}={value}\n")
        return value

    def from_ten(s: Scratch) -> int:
        s.write(f"{variable}=10: ")
        term = 10 * size
        if size > 1:
            s.write(f"{size}*10=")
            term = s.result(term)
        else:
            s.write("10")
        s.write("\n")
        value = term if coefficient > 0 else -term
        if constant:
            value = s.combine(value, constant) if coefficient > 0 else s.combine(constant, value)
        # how far the unknown is from 10, in units of its coefficient
        gap = s.combine(right, -value) if coefficient > 0 else s.combine(value, -right)
        steps = signed_quotient(s, gap)
        s.write(f"{variable}=")
        return s.combine(10, steps)

    def substitute(s: Scratch, claimed: str) -> bool:
        if not re.fullmatch(r"-?[0-9]{1,6}", claimed.strip()):
            return False
        value = int(claimed)
        term = abs(value)
        if size > 1:
            digits = str(term).rstrip("0") or "0"
            zeros = len(str(term)) - len(digits) if term else 0
            if len(digits) == 1:
                s.write(f"{size}*{term}: ")
                term = s.times_digit(size, int(digits), zeros)
            else:
                term = s.multiply(size, term)
        if (value < 0) != (coefficient < 0):
            term = -term
        if constant:
            term = s.combine(term, constant) if coefficient > 0 else s.combine(constant, term)
        stands = term == right
        s.write(f"{term}{'=' if stands else '!='}{right}\n")
        return stands

    plan = [f"{'Take' if constant > 0 else 'Add'} {abs(constant)} {'from' if constant > 0 else 'to'} both sides."]
    if not constant:
        plan = [f"Only {coefficient}*{variable} is on the left."]
    elif coefficient < 0:
        plan = [f"Add {name} to both sides.", f"Move {right} to the other side."]
    plan.append(f"Divide by {size}." if size > 1 else f"Read off {variable}.")
    code = f"a = {coefficient}\nb = {constant}\nc = {right}\nprint((c - b) // a)"
    return Lesson(
        question=item["question"].strip(),
        answer=item["answer"],
        routes=[("solving for the unknown", solve), (f"starting from {variable}=10", from_ten)],
        plan=plan,
        code=code,
        checks=[(f"putting {variable} back in", substitute)],
    )
