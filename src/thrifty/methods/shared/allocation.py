"""Splitting a budget over sub-questions: by credits and a decay schedule, or by how their uncertainty falls.

Source: Plan and Budget, arXiv 2505.16122; card ``plan-and-budget``. Schedules and rounding follow the release.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

SCHEDULES = ("constant", "linear", "polynomial", "exponential", "cosine")


def schedule_weights(schedule: str, n: int) -> list[Fraction]:
    """Return how much each of n sub-questions weighs by its place ``(n,)``.

    With j from 0: 1, ``n - j``, ``(n - j)**2``, ``0.9**j`` or ``0.5 (1 + cos(pi j / (n - 1))) + 0.1``.

    Args:
        schedule: one of `SCHEDULES`.
        n: sub-questions; one alone weighs 1.

    Raises:
        ValueError: there is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule {schedule!r}")
    if n == 1 or schedule == "constant":
        return [Fraction(1)] * n
    if schedule == "cosine":
        # rounded, so that the cosine of a right angle is 0 and shares that should be whole are
        waves = [Fraction(math.cos(math.pi * j / (n - 1))).limit_denominator(10**9) for j in range(n)]
        return [(1 + wave) / 2 + Fraction(1, 10) for wave in waves]
    if schedule == "exponential":
        return [Fraction(9, 10) ** j for j in range(n)]
    return [Fraction(n - j) ** (2 if schedule == "polynomial" else 1) for j in range(n)]


def allocate(credits: Sequence[float], budget: int, schedule: str = "constant", at_least: int = 0) -> list[int]:
    """Split a budget in proportion to credits times schedule weights.

    Shares are rounded down, and what remains goes one each to the largest, the first of equals first.

    >>> allocate([50, 30, 20], 450, "polynomial")
    [344, 91, 15]

    Args:
        credits: of the sub-questions, at least 0 and not all 0 ``(n,)``.
        budget: units to split.
        schedule: one of `SCHEDULES`.
        at_least: units for each sub-question, taken from the largest parts, as far as the budget goes round.

    Returns:
        Units of each sub-question ``(n,)``; their sum is the budget.

    Raises:
        ValueError: no credits, a negative one, only zeros, a negative budget, or an unknown schedule.
    """
    if budget < 0 or not credits or min(credits) < 0 or not any(credits):
        raise ValueError("allocate needs a budget of at least 0, and credits of at least 0 that are not all 0")
    weights = schedule_weights(schedule, len(credits))
    weighted = [Fraction(credit) * weight for credit, weight in zip(credits, weights, strict=True)]
    shares = [part * budget / sum(weighted) for part in weighted]
    parts = [math.floor(share) for share in shares]
    by_size = sorted(range(len(parts)), key=lambda j: -weighted[j])
    for j in by_size[: budget - sum(parts)]:
        parts[j] += 1
    least = min(at_least, budget // len(parts))
    for j in reversed(by_size):
        while parts[j] < least:
            parts[parts.index(max(parts))] -= 1
            parts[j] += 1
    return parts


def uncertainty(complexity: Sequence[float], ease: Sequence[float], parts: Sequence[float]) -> float:
    """Return the epistemic uncertainty that remains, the sum of ``c / b**beta``.

    Args:
        complexity: c of each sub-question, above 0 ``(n,)``.
        ease: beta, how fast its uncertainty falls, above 0 ``(n,)``.
        parts: b, its budget, above 0 ``(n,)``.
    """
    return math.fsum(c / b**beta for c, beta, b in zip(complexity, ease, parts, strict=True))


def bam_allocate(complexity: Sequence[float], ease: Sequence[float], budget: float, exact: bool = True) -> list[float]:
    """Split a budget so that the least uncertainty remains (BAM, in the first version BBAM).

    Where the derivative is the same for all, ``b = (c beta / lambda)**(1 / (beta + 1))``.

    >>> [round(b, 2) for b in bam_allocate([1, 1], [1, 2], 100, exact=False)]
    [44.25, 55.75]
    >>> [round(b, 2) for b in bam_allocate([1, 1], [1, 2], 100)]
    [77.16, 22.84]

    Args:
        complexity: c of each sub-question, above 0 ``(n,)``.
        ease: beta of each, above 0 ``(n,)``.
        budget: to split, above 0.
        exact: find lambda by bisection. Otherwise the paper's closed form, ``b`` in proportion to
            ``(c beta)**(1 / (beta + 1))``, which is the same only if all beta are.

    Returns:
        The budget of each ``(n,)``.

    Raises:
        ValueError: lists that do not pair or are empty, or a number that is not above 0.
    """
    if not complexity or len(complexity) != len(ease) or min(budget, *complexity, *ease) <= 0:
        raise ValueError("bam_allocate needs as many c as beta, at least one, and all of them and the budget above 0")

    def parts(log_multiplier: float) -> list[float]:
        logs = [(math.log(c * beta) - log_multiplier) / (beta + 1) for c, beta in zip(complexity, ease, strict=True)]
        return [math.exp(log) for log in logs]

    low = high = 0.0
    if exact:
        while sum(parts(low)) < budget:
            low -= 1.0
        while sum(parts(high)) > budget:
            high += 1.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(parts(middle)) > budget else (low, middle)
    found = parts(low)
    return [b * budget / sum(found) for b in found]
