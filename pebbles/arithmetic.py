"""Arithmetic written out digit by digit, the way a small transformer can learn it.

A tiny model does not learn ``57 + 87 = 144`` as one step, but it does learn to write every carry
where it is used. `Scratch` writes such lines; it can plant one slip, which then propagates exactly as
a model's own slip would, and whose own digits are marked so that they are never a training target.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

LARGE = 130
"""From which number on haste forgets carries: sums get that large at the hard level, and seldom below it."""


@dataclass
class Scratch:
    """A page of working.

    Attributes:
        rng: the source of randomness for slips.
        slip_at: index of the elementary result that goes wrong, or None for none.
        hasty: whether to forget what is carried or borrowed in sums and differences of large numbers.
        pieces: what was written: ``(text, is a training target)``.
    """

    rng: random.Random
    slip_at: int | None = None
    hasty: bool = False
    pieces: list[tuple[str, bool]] = field(default_factory=list)
    results: int = 0

    def write(self, text: str) -> None:
        self.pieces.append((text, True))

    def result(self, value: int, carry_in: int = 0) -> int:
        """Write one elementary result after ``=`` and return it, slipped if its turn has come."""
        slipped = self.results == self.slip_at
        self.results += 1
        if slipped:
            options = [value + 1, value - 1, value + 10, value - carry_in]
            value = self.rng.choice([v for v in options if v >= 0 and v != value] or [value + 1])
        self.pieces.append((str(value), not slipped))
        return value

    def choose(self, text: str, wrong: Sequence[str]) -> str:
        """Write one elementary result that is no number and return it; a slip writes one of ``wrong`` instead."""
        slipped = self.results == self.slip_at and bool(wrong)
        self.results += 1
        if slipped:
            text = self.rng.choice(wrong)
        self.pieces.append((text, not slipped))
        return text

    def _conclude(self, digits: list[int], negative: bool = False) -> int:
        value = int("".join(str(d) for d in reversed(digits)))
        self.write(f" -> {'-' if negative and value else ''}{value}\n")
        return -value if negative else value

    def add(self, a: int, b: int, negative: bool = False) -> int:
        """Write the columns of ``a + b`` (both non-negative), then the sum."""
        digits, carry = [], 0
        for i in range(max(len(str(a)), len(str(b)))):
            top, bottom = a // 10**i % 10, b // 10**i % 10
            self.write((", " if i else "") + f"{top}+{bottom}" + (f"+{carry}" if carry else "") + "=")
            forgotten = carry if self.hasty and max(a, b) >= LARGE else 0
            total = self.result(top + bottom + carry - forgotten, carry)
            digits.append(total % 10)
            carry = total // 10
        if carry:
            digits.append(carry)
        return self._conclude(digits, negative)

    def subtract(self, a: int, b: int, negative: bool = False) -> int:
        """Write the columns of ``a - b`` for ``a >= b >= 0``, borrowing where needed."""
        digits, borrow = [], 0
        for i in range(len(str(a))):
            top, bottom = a // 10**i % 10, b // 10**i % 10
            lend = 10 if top < bottom + borrow else 0
            self.write((", " if i else "") + f"{top + lend}-{bottom}" + (f"-{borrow}" if borrow else "") + "=")
            forgotten = borrow if self.hasty and a >= LARGE else 0
            digits.append(self.result(top + lend - bottom - borrow + forgotten, -borrow) % 10)
            borrow = lend // 10
        return self._conclude(digits, negative)

    def combine(self, total: int, term: int) -> int:
        """Write ``total + term`` for signed numbers, first rewritten to a plain sum or difference."""
        sign = "-" if term < 0 else "+"
        a, b = abs(total), abs(term)
        self.write(f"{total}{sign}{b}")
        if (total < 0) == (term < 0):
            if total < 0:
                self.write(f"=-({a}+{b})")
            self.write(": ")
            return self.add(a, b, negative=total < 0)
        if total < 0:
            self.write(f"={b}-{a}" if b >= a else f"=-({a}-{b})")
            negative = a > b
        else:
            if b > a:
                self.write(f"=-({b}-{a})")
            negative = b > a
        self.write(": ")
        return self.subtract(max(a, b), min(a, b), negative)

    def times_digit(self, a: int, digit: int, zeros: int = 0) -> int:
        """Write the columns of ``a * digit``, then the product with ``zeros`` zeros appended."""
        digits, carry = [0] * zeros, 0
        for i in range(len(str(a))):
            top = a // 10**i % 10
            self.write((", " if i else "") + f"{top}*{digit}" + (f"+{carry}" if carry else "") + "=")
            total = self.result(top * digit + carry, carry)
            digits.append(total % 10)
            carry = total // 10
        if carry:
            digits.extend(int(d) for d in reversed(str(carry)))
        return self._conclude(digits)

    def multiply(self, a: int, b: int) -> int:
        """Write ``a * b`` (both non-negative) as one row a digit of ``b`` and their sum."""
        total = None
        for i in range(len(str(b))):
            digit = b // 10**i % 10
            self.write(f"{a}*{digit}{'0' * i}: ")
            row = self.times_digit(a, digit, zeros=i)
            if total is None:
                total = row
            else:
                self.write(f"{total}+{row}: ")
                total = self.add(total, row)
        assert total is not None
        return total

    def divide(self, a: int, b: int) -> int:
        """Write ``a / b`` (``b`` positive) as long division and return the quotient, dropping the remainder.

        A one-digit divisor needs one equation a column, ``17/3=5 r 2``; a longer one needs the product and the
        difference written out. After a slip the working goes on: a rest that would be negative counts as none.
        """
        digits, rest = "", 0
        for column in str(a):
            rest = 10 * rest + int(column)
            if rest < b and not digits:  # no leading zeros
                continue
            if b < 10:
                self.write(", " if digits else "")
            self.write(f"{rest}/{b}=")
            quotient = min(self.result(min(rest // b, 9)), 9)
            digits += str(quotient)
            if b < 10:
                self.write(" r ")
                rest = self.result(rest % b)
                continue
            if not quotient:
                self.write("\n")
                continue
            self.write(f", {b}*{quotient}: ")
            product = self.times_digit(b, quotient)
            if product >= rest:
                rest = 0
            else:
                self.write(f"{rest}-{product}: ")
                rest = self.subtract(rest, product)
        value = int(digits or "0")
        self.write(f"{' ' if b < 10 and digits else f'{a}/{b} '}-> {value}\n")
        return value


def miscopies(number: int) -> list[str]:
    """Return what a careless copy of a natural number looks like: a digit off by one, or two digits swapped."""
    digits = str(number)
    wrong = {str(number + 1), str(max(number - 1, 0)), str(int(digits[0]) % 9 + 1) + digits[1:]}
    if digits[-1] != "0":
        wrong.add(digits[:-2] + digits[:-3:-1])
    return sorted(wrong - {digits})
