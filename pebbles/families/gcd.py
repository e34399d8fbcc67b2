"""The greatest common divisor of two numbers, so that no quotient is ever guessed.

The natural route halves and subtracts: a digit of a half depends on itself and its left neighbour only, which is one
small step. The other one divides: to divide 95 by 17 the line ``95: 17, 34, 68, 136`` doubles 17 until it reaches 95
(again two neighbouring digits a step), then the largest double that fits is subtracted until less than 17 is left.
"""

from __future__ import annotations

from typing import Any

from arithmetic import Scratch, miscopies
from lesson import Lesson, Route

MOST_DIFFERENCES = 7
PRIMES = (2, 3, 5)  # seen at the last digit or the digit sum


def _remainder(s: Scratch, a: int, b: int) -> int:
    """Write the division of ``a`` by ``b >= 2`` and return what is left; zero is no divisor, also after a slip."""
    s.write(f"{a}: ")
    b = int(s.choose(str(b), [digits for digits in miscopies(b) if int(digits) > 1]))
    doubles = [b]
    while doubles[-1] < a:
        s.write(", ")
        doubles.append(s.result(2 * doubles[-1]))
    s.write("\n")
    while a >= b:
        fits = max(double for double in doubles if double <= a)
        s.write(f"{a}-")
        fits = int(s.choose(str(fits), [digits for digits in miscopies(fits) if 0 < int(digits) <= a]))
        s.write(": ")
        a = s.subtract(a, fits)
    return a


def _dividing(s: Scratch, a: int, b: int) -> int:
    a, b = max(a, b), min(a, b)
    if b == 1:
        s.write(f"{a}: 1\n")
    while b > 1:
        a, b = b, _remainder(s, a, b)
    return 1 if b == 1 else a


def _halving(s: Scratch, a: int, b: int) -> int:
    """Write the binary way: common twos aside, halve each number while it is even, then subtract."""
    s.write(f"{a}, {b}\n")
    twos = 1
    while a and b and a % 2 == 0 and b % 2 == 0:
        s.write("by ")
        twos = s.result(2 * twos)
        s.write(": ")
        a = s.result(a // 2)
        s.write(", ")
        b = s.result(b // 2)
        s.write("\n")
    a, b = _odd(s, a), _odd(s, b)
    while min(a, b) > 1:
        a, b = max(a, b), min(a, b)
        s.write(f"{a}-")
        b = int(s.choose(str(b), [digits for digits in miscopies(b) if 0 < int(digits) <= a]))
        s.write(": ")
        left = s.subtract(a, b)
        a, b = _odd(s, b), _odd(s, left)  # the smaller is even only after a slip
    odd = 1 if min(a, b) == 1 else max(a, b)
    if twos > 1:
        s.write(f"{odd}*{twos}: " if twos < 10 else "")
        return s.times_digit(odd, twos) if twos < 10 else s.multiply(odd, twos)
    return odd


def _odd(s: Scratch, number: int) -> int:
    """Write the halves of ``number`` as long as it is even and return the odd rest (or zero)."""
    if number % 2 or not number:
        return number
    s.write(f"{number}: ")
    while number and number % 2 == 0:
        number = s.result(number // 2)
        s.write(", " if number and number % 2 == 0 else "\n")
    return number


def _taking_differences(s: Scratch, a: int, b: int) -> int:
    for _ in range(MOST_DIFFERENCES + 5):  # a slip may make the way longer
        if a == b or min(a, b) <= 1:
            break
        a, b = max(a, b), min(a, b)
        s.write(f"{a}-{b}: ")
        a = s.subtract(a, b)
    s.write(f"{a}, {b}\n")
    return 1 if min(a, b) == 1 else min(a, b) or max(a, b)


def _differences(a: int, b: int) -> int:
    """Return how many differences lead to two equal numbers or to a 1."""
    steps = 0
    while a != b and min(a, b) > 1:
        a, b = max(a, b) - min(a, b), min(a, b)
        steps += 1
    return steps


def _divides(s: Scratch, a: int, b: int, claim: str) -> bool:
    """Write whether the claim divides both; of a claimed 1, whether 2, 3 and 5 do not."""
    if not (claim.isascii() and claim.isdigit() and len(claim) < 9 and 0 < int(claim) <= min(a, b)):
        s.write(f"that does not divide {a} and {b}\n")
        return False
    if int(claim) == 1:
        return not any(_both(s, a, b, prime) for prime in PRIMES)
    if int(claim) in PRIMES:
        return _both(s, a, b, int(claim))
    for number in (a, b):
        if left := _remainder(s, number, int(claim)):
            s.write(f"{left} left: {claim} does not divide {number}\n")
            return False
    s.write(f"{claim} divides {a} and {b}\n")
    return True


def _both(s: Scratch, a: int, b: int, prime: int) -> bool:
    """Write for each number whether the prime divides it, by its last digit or its digit sum."""
    s.write(f"{prime}: ")
    for number, end in ((a, ", "), (b, "\n")):
        s.write(f"{number} ")
        sign = number
        if prime == 3 and number > 9:
            digits = [int(d) for d in str(number)]
            sign = digits[0]
            for digit in digits[1:]:
                s.write(f"{sign}+{digit}=")
                sign = s.result(sign + digit)
                s.write(" ")
        words = ("yes", "no") if sign % prime == 0 else ("no", "yes")
        if s.choose(words[0], words[1:]) == "no":
            s.write("\n")
            return False
        s.write(end)
    return True


def lesson(item: dict[str, Any]) -> Lesson:
    """Return the lesson for one item of gcd: two numbers."""
    a, b = (int(x) for x in item["metadata"]["numbers"])
    routes: list[tuple[str, Route]] = [
        ("halving", lambda s: _halving(s, a, b)),
        ("dividing", lambda s: _dividing(s, a, b)),
    ]
    if _differences(a, b) <= MOST_DIFFERENCES:
        routes.append(("taking differences", lambda s: _taking_differences(s, a, b)))
    return Lesson(
        question=item["question"].strip(),
        answer=str(item["answer"]),
        routes=routes,
        plan=[
            f"Halve {a} and {b} while both are even, and note the factor.",
            "Then halve each alone while it is even.",
            "Subtract the smaller from the larger, halve what is left, and so on, until 1 or 0 is left.",
            "Multiply by the factor.",
        ],
        code=f"from math import gcd\nprint(gcd({a}, {b}))",
        checks=[("dividing both by it", lambda s, claim: _divides(s, a, b, claim))],
    )
