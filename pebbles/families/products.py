"""Products of two numbers, row by row, and the check by casting out nines."""

from __future__ import annotations

from typing import Any

from arithmetic import Scratch, miscopies
from lesson import Lesson, Route


def _rows(s: Scratch, a: int, b: int, zeros: int = 0) -> int:
    """Write ``a * b``, with ``zeros`` zeros appended, as one row a digit of ``b`` and their running sum."""
    s.hasty = s.hasty and max(a, b) > 99  # else haste would cost as much at the default level
    total = None
    for place, digit in enumerate(int(d) for d in reversed(str(b))):
        tail = "0" * (place + zeros)
        s.write(f"{a}*")
        others = {(digit + 1) % 10, (digit + 9) % 10, *map(int, str(b))} - {digit}
        digit = int(s.choose(f"{digit}{tail}", [f"{other}{tail}" for other in sorted(others)])[0])
        s.write(": ")
        row = s.times_digit(a, digit, zeros=len(tail))
        if total is None:
            total = row
            continue
        s.write(f"{total}+")
        row = int(s.choose(str(row), miscopies(row)))
        s.write(": ")
        total = s.add(total, row)
    assert total is not None
    return total


def _rounded(s: Scratch, a: int, b: int) -> int:
    """Write ``a * b`` as a product with the next multiple of ten, less what that is too much."""
    up = -(-b // 10) * 10
    s.write(f"{b}={up}-")
    over = int(s.choose(str(up - b), miscopies(up - b)))
    s.write("\n")
    whole = _rows(s, a, up // 10, zeros=1)
    s.write(f"{a}*{over}: ")
    return s.combine(whole, -s.times_digit(a, over))


def _digit_sum(s: Scratch, number: int) -> int:
    """Write the digits of ``number`` added up, and again those of the sum wherever it has two."""
    if number < 10:
        return number
    s.write(f"{number}: ")
    total, rest = number, ""
    while total > 9 or rest:
        if total > 9:
            total, rest = int(str(total)[0]), str(total)[1:] + rest
        total, rest, after = _plus(s, total, int(rest[0])), rest[1:], ", "
        s.write(after if total > 9 or rest else "\n")
    return total


def _plus(s: Scratch, a: int, b: int) -> int:
    s.write(f"{a}+{b}=")
    return s.result(a + b)


def _nines(s: Scratch, a: int, b: int, claim: str) -> bool:
    """Write whether the digit sums of the factors fit the one of the claimed product."""
    if not (claim.isascii() and claim.isdigit() and len(claim) < 13):
        s.write(f"that is no product of {a} and {b}\n")
        return False
    left, right = _digit_sum(s, a), _digit_sum(s, b)
    s.write(f"{left}*{right}=")
    product = s.result(left * right)
    s.write("\n")
    expected, found = _digit_sum(s, product), _digit_sum(s, int(claim))
    s.write(f"{expected} and {found}: {'fits' if expected == found else 'does not fit'}\n")
    return expected == found


def lesson(item: dict[str, Any]) -> Lesson:
    """Return the lesson for one item of products: two natural factors."""
    a, b = (int(x) for x in item["metadata"]["expression"].split(" * "))
    routes: list[tuple[str, Route]] = [
        ("row by row", lambda s: _rows(s, a, b)),
        ("swapping the factors", lambda s: _rows(s, b, a)),
    ]
    if b > 9 and b % 10 >= 7:
        routes.append(("rounding up", lambda s: _rounded(s, a, b)))
    return Lesson(
        question=item["question"].strip(),
        answer=str(item["answer"]),
        routes=routes,
        plan=[
            f"Multiply {a} by each digit of {b}, from the last.",
            "Put a zero more at the end of each next row.",
            "Add each row to the sum so far.",
        ],
        code=f"print({a} * {b})",
        checks=[("casting out nines", lambda s, claim: _nines(s, a, b, claim))],
    )
