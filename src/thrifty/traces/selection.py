"""Selection: choose one of several candidate answers, by vote, by length or by score.

Every function returns the index of a candidate, None if none can be chosen, and breaks ties to the earliest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from thrifty.errors import ThriftyError
from thrifty.traces.answers import AnswerKind
from thrifty.traces.equality import same_answer

Answers = Sequence[str | None]


def classes(answers: Answers, kind: AnswerKind = "auto") -> list[int | None]:
    """Return for each answer the index of the first one that is mathematically the same, None for no answer.

    ``["1/2", None, "3", "0.5"]`` gives ``[0, None, 2, 0]``.

    Args:
        answers: extracted answers, None where there is none.
        kind: what kind of answers they are.

    Raises:
        MissingExtra: it takes algebra to compare two of them, and math-verify is not installed.
    """
    first: list[int] = []
    found: list[int | None] = []
    for i, answer in enumerate(answers):
        if answer is None:
            found.append(None)
            continue
        alike = next((j for j in first if same_answer(answer, answers[j] or "", kind)), None)
        if alike is None:
            first.append(alike := i)
        found.append(alike)
    return found


def tally(answers: Answers, weights: Sequence[float] | None = None, kind: AnswerKind = "auto") -> dict[int, float]:
    """Return the votes of each class of equal answers, by the index of its first member, in that order.

    Args:
        answers: extracted answers; one that is None has no vote.
        weights: of each one's vote, finite and not negative; None for one each.
        kind: what kind of answers they are.

    Raises:
        ThriftyError: the weights are not one finite number of at least 0 for each answer.
        MissingExtra: see `classes`.
    """
    if weights is None:
        weights = [1.0] * len(answers)
    if len(weights) != len(answers) or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ThriftyError(f"a vote needs one finite weight of at least 0 for each of {len(answers)} answers")
    votes: dict[int, float] = {}
    for first, weight in zip(classes(answers, kind), weights, strict=True):
        if first is not None:
            votes[first] = votes.get(first, 0.0) + weight
    return votes


def vote(answers: Answers, weights: Sequence[float] | None = None, kind: AnswerKind = "auto") -> int | None:
    """Return the first member of the class of equal answers with the most votes.

    ``["7", "0.5", None, "1/2"]`` gives 1. Arguments and errors are those of `tally`.
    """
    votes = tally(answers, weights, kind)
    return max(votes, key=lambda first: votes[first], default=None)


def still_needed(answers: Answers, remaining: int, kind: AnswerKind = "auto") -> int:
    """Return how many further answers it takes at the least until none can change the winner of an unweighted `vote`.

    Of five votes with 2 to 1 so far, one more for the leader settles it. With 2 to 1 and one missing it is settled
    if the leader came first, for it wins the tie. To ask for so many answers at once wastes none.

    Args:
        answers: so far.
        remaining: how many are still to come, at the most.
        kind: what kind of answers they are.

    Raises:
        MissingExtra: see `classes`.
    """
    votes = tally(answers, kind=kind)
    votes[len(answers)] = 0.0  # they may all give a new answer
    return next(
        count
        for count in range(remaining + 1)
        if any(_settled({**votes, first: votes[first] + count}, remaining - count) for first in votes)
    )


def _settled(votes: dict[int, float], remaining: int) -> bool:
    leader = max(votes, key=lambda first: votes[first])
    new: list[tuple[float, float]] = [(remaining, -math.inf)]  # an answer that nobody has given yet
    rivals = [*new, *((votes[first] + remaining, -first) for first in votes if first != leader)]
    return not remaining or (votes[leader], -leader) > max(rivals)


def shortest(lengths: Sequence[float], answers: Answers | None = None) -> int | None:
    """Return the shortest candidate.

    Args:
        lengths: in tokens.
        answers: if given, candidates without an answer cannot be chosen.
    """
    allowed = [True] * len(lengths) if answers is None else [answer is not None for answer in answers]
    return argbest([-length if fine else None for length, fine in zip(lengths, allowed, strict=True)])


def argbest(scores: Sequence[float | None]) -> int | None:
    """Return the candidate with the highest score; None and NaN are not scores."""
    known = [i for i, score in enumerate(scores) if score is not None and not math.isnan(score)]
    return max(known, key=lambda i: scores[i] or 0.0, default=None)
