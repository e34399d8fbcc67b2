"""What the records of a bench run say, and how sure they are: intervals, paired comparisons, the summary."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thrifty.traces.trace import Usage

VANILLA = "vanilla"
"""The specification of the method that all others are compared with."""

_DRAWN_AT_ONCE = 1_000_000
"""Problem indices that a bootstrap holds in memory at a time."""


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class PerProblem:
    """What one method spent and scored on each problem, averaged over the samples of the problem.

    Attributes:
        tokens: all tokens of the account ``(problems,)``.
        accuracy: share of correct responses, 0 to 1 ``(problems,)``.
    """

    tokens: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """A method against vanilla on the same problems.

    Attributes:
        problems: how many they share.
        token_ratio: mean tokens of the method over mean tokens of vanilla.
        token_ratio_interval: where the ratio lies.
        accuracy_difference: mean accuracy of the method less that of vanilla, -1 to 1.
        accuracy_difference_interval: where the difference lies.
    """

    problems: int
    token_ratio: float
    token_ratio_interval: Interval
    accuracy_difference: float
    accuracy_difference_interval: Interval


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion.

    >>> [round(end, 3) for end in wilson(8, 10)]
    [0.49, 0.943]

    Args:
        successes: of them.
        n: trials; of none, nothing is known: 0 to 1.
        confidence: above 0 and below 1.

    Raises:
        ValueError: more successes than trials, or a confidence out of range.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n, not {successes} of {n}")
    z = NormalDist().inv_cdf((1 + _checked(confidence)) / 2)
    if n == 0:
        return Interval(0.0, 1.0)
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    reach = z / scale * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # the ends are exact where nothing or everything succeeded; rounding must not say otherwise
    return Interval(
        0.0 if successes == 0 else centre - reach,
        1.0 if successes == n else centre + reach,
    )


def newcombe(first: float, first_interval: Interval, second: float, second_interval: Interval) -> Interval:
    """Return Newcombe's interval of the difference of two independent proportions.

    Args:
        first: proportion that is taken away.
        first_interval: its Wilson interval.
        second: proportion that it is taken from.
        second_interval: its Wilson interval.

    Returns:
        Where ``second - first`` lies, with the confidence of the intervals given.
    """
    difference = second - first
    below = ((second - second_interval.low) ** 2 + (first_interval.high - first) ** 2) ** 0.5
    above = ((second_interval.high - second) ** 2 + (first - first_interval.low) ** 2) ** 0.5
    return Interval(difference - below, difference + above)


def paired_bootstrap(
    method: PerProblem,
    vanilla: PerProblem,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare a method with vanilla by resampling problems.

    Problems are drawn with replacement, and a drawn problem brings all its samples of both methods; the
    intervals are percentiles. Same arguments, same result.

    Args:
        method: per problem, in the order of ``vanilla``.
        vanilla: per problem; each must have spent a token.
        resamples: how many.
        confidence: above 0 and below 1.
        seed: of the draws.

    Raises:
        ValueError: no problem, problems that do not pair, or a vanilla without tokens.
    """
    n = len(vanilla.tokens)
    if n == 0 or any(len(values) != n for values in (method.tokens, method.accuracy, vanilla.accuracy)):
        raise ValueError("method and vanilla need the same problems, at least one")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    if vanilla.tokens.min() <= 0:
        raise ValueError("vanilla must have spent at least one token on every problem")
    tail = (1 - _checked(confidence)) / 2
    gains = method.accuracy - vanilla.accuracy
    ratios, differences = np.empty(resamples), np.empty(resamples)
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // n)
    for start in range(0, resamples, step):
        drawn = generator.integers(n, size=(min(step, resamples - start), n))
        here = slice(start, start + len(drawn))
        ratios[here] = method.tokens[drawn].sum(1) / vanilla.tokens[drawn].sum(1)
        differences[here] = gains[drawn].mean(1)
    return Comparison(
        problems=n,
        token_ratio=float(method.tokens.sum() / vanilla.tokens.sum()),
        token_ratio_interval=Interval(*np.quantile(ratios, [tail, 1 - tail]).tolist()),
        accuracy_difference=float(gains.mean()),
        accuracy_difference_interval=Interval(*np.quantile(differences, [tail, 1 - tail]).tolist()),
    )


def cap_budget_for(
    thinking_tokens: Sequence[int] | NDArray[np.int64],
    other_tokens: Sequence[float] | NDArray[np.float64],
    target_mean_total: float,
    closing_cost: float,
) -> int:
    """Return the budget at which a plain cap spends what a method spent, as far as vanilla's records tell.

    A cap at B is predicted to spend ``mean(min(thinking, B) + closing_cost * (thinking > B) + other)``. The
    largest B whose prediction stays within the target is less than a token below it, unless it is clipped.
    (Where closing costs more than the last tokens of a thought, the prediction falls at some B, so that no
    bisection finds it; the largest B is right still, and never falls when the target rises.)

    >>> cap_budget_for([10, 20, 30], [5, 5, 5], target_mean_total=5 + 50 / 3, closing_cost=0)
    20

    Args:
        thinking_tokens: of vanilla's responses ``(records,)``.
        other_tokens: of the same responses, prompt and answer ``(records,)``.
        target_mean_total: mean tokens to spend on a response, all kinds.
        closing_cost: tokens that a forced end of the thinking adds.

    Returns:
        Thinking tokens, from 0 to the longest of vanilla's.

    Raises:
        ValueError: no records, arrays that do not pair, or negative numbers.
    """
    thinking = np.asarray(thinking_tokens, dtype=np.int64)
    other = np.asarray(other_tokens, dtype=np.float64)
    if len(thinking) == 0 or len(thinking) != len(other):
        raise ValueError("thinking and other tokens need the same records, at least one")
    if thinking.min() < 0 or other.min() < 0 or closing_cost < 0:
        raise ValueError("tokens and the closing cost must not be negative")
    longer = len(thinking) - np.cumsum(np.bincount(thinking))  # [B]: thoughts longer than B
    kept = np.concatenate([[0], np.cumsum(longer[:-1])])  # [B]: sum of min(thinking, B)
    predicted = kept + closing_cost * longer + other.sum()
    target = target_mean_total * len(thinking)
    within = np.flatnonzero(predicted <= target + 1e-9 * max(1.0, abs(target)))  # a mean rounds, a budget must not
    return int(within[-1]) if len(within) else 0


def e3(accuracy: float, tokens: float) -> float:
    """Return the E3 of a set of problems: accuracy times accuracy for each token, ``A * (A / T)``.

    >>> round(e3(0.8, 400), 6)
    0.0016

    Source: Plan and Budget, arXiv 2505.16122; card ``plan-and-budget``.

    Args:
        accuracy: mean over the set; as a fraction here, in percent the value is 10,000 times as large.
        tokens: mean tokens generated for a response, without prompt, probes and helpers; a latent step counts as one.

    Raises:
        ValueError: nothing was generated, so that it is undefined.
    """
    if tokens <= 0:
        raise ValueError("E3 is undefined where nothing was generated")
    return accuracy * accuracy / tokens


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point dominates, fewest tokens first.

    A point dominates another if it has no more tokens, no less accuracy, and is not the same.

    >>> pareto_front([(100, 0.8), (50, 0.7), (60, 0.6), (100, 0.8)])
    [1, 0, 3]

    Args:
        points: tokens and accuracy of each.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        best = points[front[-1]] if front else None
        if best is None or points[i][1] > best[1] or points[i] == best:
            front.append(i)
    return front


def thinking_tokens(record: Mapping[str, Any]) -> int:
    """Return the tokens of a record's thinking, those that a method forced into it and latent steps included.

    Args:
        record: a trace as JSON.
    """
    other = ("injected", "latent")
    beside = sum(len(s["ids"]) for s in record["segments"] if s["kind"] in other and s["phase"] == "thinking")
    return int(record["usage"]["thinking"]) + beside


def over_budget(record: Mapping[str, Any]) -> bool:
    """Tell whether the thinking went beyond the budget that the method set itself in ``events["budget"]``.

    What was forced to close the thinking does not count: it is how a budget is kept.

    Args:
        record: a trace as JSON.
    """
    budget = record["events"].get("budget")
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        return False
    kinds = ("thinking", "injected", "latent")
    thinking = [s for s in record["segments"] if s["phase"] == "thinking" and s["kind"] in kinds]
    closer = len(thinking[-1]["ids"]) if thinking and thinking[-1]["kind"] == "injected" else 0
    return thinking_tokens(record) - closer > budget


@dataclass
class _Tally:
    """Running sums over the records of one method: numbers only, so that texts are forgotten at once."""

    usage: Usage = field(default_factory=Usage)
    problems: dict[str, list[int]] = field(default_factory=dict)  # records, tokens, correct ones
    exits: Counter[str] = field(default_factory=Counter)
    thinking: int = 0
    violations: int = 0
    solved: int = 0  # records that say when they were first correct
    first_correct: int = 0
    solved_thinking: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        usage, thinking = Usage(**record["usage"]), thinking_tokens(record)
        self.usage += usage
        self.thinking += thinking
        self.exits[record["exit_reason"]] += 1
        self.violations += over_budget(record)
        sums = self.problems.setdefault(sys.intern(record["problem_id"]), [0, 0, 0])
        for i, value in enumerate((1, usage.total, int(bool(record["correct"])))):
            sums[i] += value
        if (first := record.get("first_correct_tokens")) is not None:
            self.solved += 1
            self.first_correct += first
            self.solved_thinking += thinking

    @property
    def n(self) -> int:
        return sum(records for records, _, _ in self.problems.values())

    @property
    def correct(self) -> int:
        return sum(correct for _, _, correct in self.problems.values())

    def accuracy(self) -> float | None:
        return self.correct / self.n if self.n else None

    def means(self, problem_ids: Sequence[str]) -> PerProblem:
        sums = np.array([self.problems[i] for i in problem_ids], dtype=np.float64)
        return PerProblem(sums[:, 1] / sums[:, 0], sums[:, 2] / sums[:, 0])

    def own(self) -> dict[str, Any]:
        """Return what the summary says of this method without looking at another."""
        n, accuracy, generated = self.n, self.accuracy(), self.usage.generated + self.usage.latent_steps
        return {
            "n": n,
            "accuracy": accuracy,
            "accuracy_ci": list(wilson(self.correct, n)) if n else None,
            "tokens_mean": self.usage.total / n if n else None,
            "thinking_tokens_mean": self.thinking / n if n else None,
            "generated_tokens_mean": generated / n if n else None,
            "e3": e3(accuracy, generated / n) if accuracy is not None and generated else None,
            "usage": asdict(self.usage),
            "exit_reasons": dict(sorted(self.exits.items(), key=lambda e: (-e[1], e[0]))),
            "budget_violations": self.violations,
            "first_correct_tokens_mean": self.first_correct / self.solved if self.solved else None,
            "tokens_after_first_correct_share": (
                1 - self.first_correct / self.solved_thinking if self.solved_thinking else None
            ),
        }


def summarise(records: Iterable[Mapping[str, Any]], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Sum up the records of a run into what ``summary.json`` holds.

    Ratios and differences stand on the problems that both the method and vanilla have records for, and are
    None where there are none. Memory grows with the number of problems, not with their texts.

    Args:
        records: traces as JSON, with ``exit_reason`` and ``first_correct_tokens``; read once. Those of methods
            that ``meta`` does not name are passed over.
        meta: ``model``, ``task``, ``seed``, ``limit``, ``samples``; ``methods``, their specifications in order;
            ``caps``, the plain cap that was run at the tokens of a method; ``costs``, ``wall_seconds``,
            ``cpu_seconds`` and ``peak_rss_mib`` of a method. Of the last two, methods may be missing.
    """
    methods, caps, costs = list(meta["methods"]), meta.get("caps") or {}, meta.get("costs") or {}
    tallies = {spec: _Tally() for spec in (VANILLA, *methods, *filter(None, caps.values()))}
    for record in records:
        if (tally := tallies.get(record["method"])) is not None:
            tally.add(record)
    summary: dict[str, Any] = {key: meta.get(key) for key in ("model", "task", "seed", "limit", "samples")}
    summary["methods"] = {}
    for spec in methods:
        cap_spec, cost = caps.get(spec), costs.get(spec) or {}
        cap = tallies[cap_spec] if cap_spec else _Tally()
        summary["methods"][spec] = {
            **tallies[spec].own(),
            **_against(tallies[spec], tallies[VANILLA]),
            "cap_spec": cap_spec,
            "cap_accuracy_at_same_tokens": cap.accuracy(),
            "cap_tokens_mean": cap.usage.total / cap.n if cap.n else None,
            **{key: cost.get(key) for key in ("wall_seconds", "cpu_seconds", "peak_rss_mib")},
        }
    return summary


def _against(method: _Tally, vanilla: _Tally) -> dict[str, Any]:
    """Return what the summary says of a method beside vanilla."""
    keys = ("token_ratio", "token_ratio_ci", "accuracy_diff", "accuracy_diff_ci")
    # sorted, so that the bootstrap draws the same problems in whatever order the records came
    shared = sorted(i for i in vanilla.problems if i in method.problems)
    if not shared:
        return dict.fromkeys(keys)
    if method is vanilla:
        return dict(zip(keys, (1.0, [1.0, 1.0], 0.0, [0.0, 0.0]), strict=True))
    found = paired_bootstrap(method.means(shared), vanilla.means(shared))
    values = (
        found.token_ratio,
        list(found.token_ratio_interval),
        found.accuracy_difference,
        list(found.accuracy_difference_interval),
    )
    return dict(zip(keys, values, strict=True))


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, not {confidence}")
    return confidence
