"""Sequential acceptance: draw samples until one scores above a threshold, which labelled samples calibrate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.errors import ThriftyError
from thrifty.traces.selection import classes, vote

Scores = Sequence[float | None]
Answers = Sequence[str | None]
Policy = Callable[[Scores, Answers, float], tuple[int | None, int]]
"""Tells from scores, answers and a threshold which sample is taken, and how many are drawn for it."""

QUANTILES = 41
"""Candidates for a threshold: so many quantiles of the scores, the extremes among them."""


def passes(score: float | None, threshold: float) -> bool:
    """Tell whether a sample is accepted; one whose score is undefined (None or NaN) never is."""
    return score is not None and not math.isnan(score) and score > threshold


def first_above(scores: Scores, answers: Answers, threshold: float) -> tuple[int | None, int]:
    """Return which sample is taken, and how many are drawn for it: the first above the threshold, else the vote's.

    Scores .1 .9 .3 at threshold .5 take the second after two; at 1 all are drawn, and answers A B A elect the first.

    Args:
        scores: of the samples in the order drawn.
        answers: of the samples.
        threshold: tau.
    """
    for i, score in enumerate(scores):
        if passes(score, threshold):
            return i, i + 1
    return vote(answers), len(scores)


@dataclass(frozen=True)
class Played:
    """What a policy gives on labelled samples.

    Attributes:
        accuracy: share of the questions whose taken sample is right.
        samples: drawn for a question, on average.
        tokens: of the drawn samples, on average.
    """

    accuracy: float
    samples: float
    tokens: float


@dataclass(frozen=True)
class Labelled:
    """Samples of one question, in the order drawn.

    Attributes:
        scores: of each, None where undefined.
        correct: whether each is right.
        answers: of each.
        tokens: of each.
    """

    scores: Scores
    correct: Sequence[bool]
    answers: Answers
    tokens: Sequence[int]


def play(questions: Sequence[Labelled], threshold: float, policy: Policy = first_above) -> Played:
    """Play a policy on labelled samples.

    Args:
        questions: at least one.
        threshold: tau.
        policy: which.
    """
    right, drawn, tokens = 0, 0, 0
    for question in questions:
        taken, count = policy(question.scores, question.answers, threshold)
        right += taken is not None and question.correct[taken]
        drawn += count
        tokens += sum(question.tokens[:count])
    n = len(questions)
    return Played(right / n, drawn / n, tokens / n)


def calibrate_threshold(questions: Sequence[Labelled], policy: Policy = first_above) -> float:
    """Return the threshold at which a policy is right most often; of equal ones that which draws fewest samples.

    Candidates are quantiles of the scores, and a number below all of them (take the first sample, whatever its
    score). At the highest score nothing passes.

    Args:
        questions: to calibrate on, at least one; a question's samples stay together.
        policy: which.

    Raises:
        ThriftyError: no sample has a score.
    """
    known = [s for question in questions for s in question.scores if s is not None and not math.isnan(s)]
    if not known:
        raise ThriftyError("no sample has a score: use shorter windows, so that a trace has at least two")
    plain = [_plainly(question) for question in questions]
    lowest = math.nextafter(min(known), -math.inf)
    candidates: list[float] = [lowest, *np.quantile(known, np.linspace(0, 1, QUANTILES)).tolist()]

    def value(threshold: float) -> tuple[float, float]:
        played = play(plain, threshold, policy)
        return played.accuracy, -played.samples

    return max(candidates, key=value)


def cross_validate(questions: Sequence[Labelled], policy: Policy = first_above, folds: int = 5) -> Played:
    """Return what a policy gives on questions that its threshold was not calibrated on.

    Args:
        questions: at least two; they are dealt out to the folds in turn.
        policy: which.
        folds: at the most.

    Raises:
        ThriftyError: see `calibrate_threshold`.
    """
    folds = min(folds, len(questions))
    totals = np.zeros(3)
    for fold in range(folds):
        held_out = questions[fold::folds]
        rest = [question for i, question in enumerate(questions) if i % folds != fold]
        played = play(held_out, calibrate_threshold(rest, policy), policy)
        totals += len(held_out) * np.array([played.accuracy, played.samples, played.tokens])
    accuracy, samples, tokens = (totals / len(questions)).tolist()
    return Played(accuracy, samples, tokens)


def _plainly(question: Labelled) -> Labelled:
    """Return a question whose equal answers are equal strings, so that no vote needs algebra again."""
    names = [None if first is None else f"answer {first}" for first in classes(question.answers)]
    return Labelled(question.scores, question.correct, names, question.tokens)
