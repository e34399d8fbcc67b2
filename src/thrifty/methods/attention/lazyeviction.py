"""LazyEviction: evict every W steps only, and keep what is likely to be attended to again."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.eviction import WatchingEviction
from thrifty.errors import ThriftyError
from thrifty.methods.shared.attention import AttentionMethod, Watched, check_eviction
from thrifty.methods.tuning import Tuning
from thrifty.models.attention import AttentionPolicy
from thrifty.models.base import Model
from thrifty.models.torch import TorchModel

PRIORS = ("decreasing", "inverse", "none")
PERCENTILES = (50, 80, 90, 99)
LEAST_FORESEEN = 0.2
"""Share of late returns under which tuning warns that intervals tell little."""


def recurrence(latest: Tensor, longest: Tensor, attention: Tensor, step: Tensor | int, alpha: float) -> Tensor:
    """Return when entries were last active, and the longest gap between two activations, after a step.

    Created at 0 and active at 3, 4 and 9, an entry has 3, 4, 9 and 3, 3, 5.

    Args:
        latest: TS, the last step at which each was active.
        longest: MRI, the longest gap so far; of the same shape.
        attention: of the newest token, likewise.
        step: t; it broadcasts.
        alpha: attention from which an entry is active.

    Returns:
        Both, stacked in the last dimension.
    """
    active = attention >= alpha
    return torch.stack(
        [
            torch.where(active, step, latest),
            torch.where(active, torch.maximum(longest, step - latest), longest),
        ],
        dim=-1,
    )


def importance(step: Tensor | int, latest: Tensor, longest: Tensor, prior: str = "decreasing") -> Tensor:
    """Return I = H1 + H2: whether an entry is within its interval, and how often it comes back.

    H1 = 2 sigmoid(-(t - TS) / MRI): .7551 for a gap of 10 and MRI 20, .00067 for 40 and 5, .9800 for 7 and 175.
    At t = 12, TS 9 and MRI 5 give .7087 + .0360. Without a recurrence (MRI 0) it is 1 right at an activation, else 0.

    Args:
        step: t; it broadcasts.
        latest: TS, the last step at which each entry was active.
        longest: MRI, the longest gap between two activations; of the same shape.
        prior: H2: ``decreasing`` for 2 sigmoid(-(MRI - 1)), ``inverse`` for 2 sigmoid(-1 / MRI), ``none`` for 0.
    """
    gap = (step - latest).clamp(min=0)  # negative only where a row was rewound
    recurs = longest > 0
    interval = longest.where(recurs, 1.0)
    survival = torch.where(recurs, 2 * torch.sigmoid(-gap / interval), (gap == 0).to(interval))
    if prior == "none":
        return survival
    frequency = 2 * torch.sigmoid(1 - interval if prior == "decreasing" else -1 / interval)
    return survival + frequency * recurs


class _LazyPolicy(WatchingEviction):
    marks = 2

    def __init__(self, name: str, budget: float, window: int, protect_prompt: bool, alpha: float, prior: str) -> None:
        super().__init__(name, budget, window, protect_prompt)
        self.alpha, self.prior = alpha, prior

    def fresh(self, steps: Tensor) -> Tensor:
        return torch.stack([steps, torch.zeros_like(steps)], dim=-1)

    def grouped(self, probabilities: Tensor) -> Tensor:
        return probabilities.amax(2)

    def updated(self, marks: Tensor, attention: Tensor, steps: Tensor) -> Tensor:
        now = steps.to(marks.dtype)[:, None, None]
        return recurrence(marks[..., 0], marks[..., 1], attention, now, self.alpha)

    def score(self, layer: int, marks: Tensor, steps: Tensor) -> Tensor:
        # where a recurrence is long the priors of float32 are all 0, and ties would go by age
        found = marks.double()
        return importance(steps.double()[:, None, None], found[..., 0], found[..., 1], self.prior)


class _Recurrence(_LazyPolicy):
    """Keeps everything, counts how long the intervals of all entries are, and how many returns they foresee.

    Attributes:
        intervals: of all entries of all layers, the longest of each.
        returns: steps since an entry was active last, where it becomes active again.
        foreseen: those of them that were within the entry's longest interval so far.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__("recurrence", 1.0, 1, False, alpha, "none")
        self.intervals: Counter[int] = Counter()
        self.returns: Counter[int] = Counter()
        self.foreseen: Counter[int] = Counter()

    def updated(self, marks: Tensor, attention: Tensor, steps: Tensor) -> Tensor:
        gap = steps.to(marks.dtype)[:, None, None] - marks[..., 0]
        returned = (attention >= self.alpha) & (gap > 0)
        self.returns.update(Counter(gap[returned].long().tolist()))
        self.foreseen.update(Counter(gap[returned & (gap <= marks[..., 1])].long().tolist()))
        return super().updated(marks, attention, steps)

    def keep(self, stored: int, step: int, prompt: int) -> int:
        return stored

    def account(self, marks: Sequence[Tensor]) -> dict[str, Any]:
        for layer in marks:
            self.intervals.update(Counter(layer[..., 1].flatten().long().tolist()))
        return {}


def share_foreseen(returns: Counter[int], foreseen: Counter[int], window: int) -> float:
    """Return which share of the returns after more than a window were within the entry's longest interval so far.

    0 where nothing returns so late. Five returns after 10 steps, three of them foreseen, give .6 at a window of 4.

    Args:
        returns: how many there were, by the steps since the entry was active before.
        foreseen: likewise, those within its longest interval.
        window: steps; sooner returns find the entry among those that are always kept.
    """
    late = sum(count for gap, count in returns.items() if gap > window)
    return sum(count for gap, count in foreseen.items() if gap > window) / late if late else 0.0


def percentile(intervals: Counter[int], share: float) -> int:
    """Return the smallest interval that is not exceeded by a share of the entries."""
    wanted, seen = share * intervals.total(), 0
    for interval in sorted(intervals):
        seen += intervals[interval]
        if seen >= wanted:
            return interval
    return 0


@dataclass(frozen=True, kw_only=True)
class LazyEviction(AttentionMethod):
    """Evict keys and values every W steps only, keeping the newest W and those within their own recurrence interval.

    Attention to a token comes in waves. For each entry of each layer and key-value head the last step TS at which it
    got alpha or more is kept, and the longest gap MRI between two such steps. An eviction scores an entry by
    H1 = 2 sigmoid(-(t - TS) / MRI), whether it is still expected back, plus H2, which favours frequent recurrence.
    Between evictions the cache grows to budget + W entries, with two numbers beside each. FLOPs are counted as of full
    attention; traces tell the attended tokens and what was held.

    Source: LazyEviction: Lagged KV Eviction with Attention Pattern Observation for Efficient Long Reasoning,
    arXiv 2506.15969; card ``lazyeviction``. Follows the paper; the release was not at hand. Reconstruction: one set
    of entries for each key-value head, by the largest attention of its query heads; H2, printed in three ways; a
    prompt, whose tokens count as read at step 0 and can be evicted; a budget that is a share is one of the tokens
    read so far, and evicts nothing while it is at most W. ``thrifty tune lazyeviction`` measures W: the 80th
    percentile of MRI with the full cache. It also tells which share of the returns after more than W steps H1 can
    foresee, which are those within the entry's longest interval so far: where it is small, compare this method with
    eviction at random.

    Attributes:
        budget: B, entries to keep; up to 1 a share of the tokens that the row has read, where 1 keeps everything.
        window: W, steps between evictions, and newest entries that are always kept.
        calibration: path of what ``thrifty tune lazyeviction`` wrote; its window is used instead.
        alpha: attention from which a token counts as active; the paper has 5e-4 for DS-R1-Distill-Llama-8B.
        h2: ``decreasing`` for 2 sigmoid(-(MRI - 1)), ``inverse`` for 2 sigmoid(-1 / MRI), ``none`` for H1 alone. Under
            the first, what was ever active at two steps in a row, and never after a pause, scores 1 for good.
        protect_prompt: whether the prompt is never evicted.
    """

    slug: ClassVar[str] = "lazyeviction"
    budget: float = 0.5
    window: int = 175
    calibration: str = ""
    alpha: float = 1e-4
    h2: str = "decreasing"
    protect_prompt: bool = False

    def __post_init__(self) -> None:
        check_eviction(self.slug, self.budget, 1 if self.calibration else self.window)
        if not 0 < self.alpha < 1:
            raise ThriftyError("lazyeviction: alpha must be above 0 and below 1")
        if self.h2 not in PRIORS:
            raise ThriftyError(f"lazyeviction: h2 is one of {', '.join(PRIORS)}")

    @functools.cached_property
    def _artefact(self) -> Artefact:
        return Artefact.load(self.calibration, self.slug)

    @property
    def interval(self) -> int:
        """The W in use."""
        if not self.calibration:
            return self.window
        if (made := self._artefact.settings["alpha"]) != self.alpha:
            raise ThriftyError(f"lazyeviction: {self.calibration} was made with alpha={made}: give the same")
        window = int(self._artefact.values["window"])
        check_eviction(self.slug, self.budget, window)
        return window

    def check(self, model: Model) -> None:
        super().check(model)
        if self.calibration:
            assert isinstance(model, TorchModel)
            self._artefact.require(model)
            _ = self.interval

    def attention(self, model: TorchModel) -> AttentionPolicy | None:
        if self.budget == 1:
            return None
        return _LazyPolicy(self.slug, self.budget, self.interval, self.protect_prompt, self.alpha, self.h2)

    @classmethod
    def tune(cls, tuning: Tuning) -> Artefact:
        """Measure W; the options are `Measuring`."""
        options = tuning.read(Measuring)
        watch = _Recurrence(options.alpha)
        tuning.solve(Watched(policy=watch), tuning.problems(), what="intervals")
        found = watch.intervals
        window = max(1, percentile(found, options.percentile))
        foreseen = share_foreseen(watch.returns, watch.foreseen, window)
        warnings = ["hardly anything is attended to twice: give a lower alpha"] * (window == 1)
        if foreseen < LEAST_FORESEEN:
            warnings.append("what returns late is hardly ever foreseen: compare with random-eviction")
        report = {
            "window": window,
            "recurring": round(1 - found[0] / max(found.total(), 1), 4),
            "foreseen": round(foreseen, 4),
            "percentiles": {f"{p}%": percentile(found, p / 100) for p in PERCENTILES},
            "warning": warnings,
        }
        made_with = tuning.about(**dataclasses.asdict(options))
        return Artefact(cls.slug, identity(tuning.model), made_with, {"window": window}, report)


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How W is measured.

    Attributes:
        alpha: attention from which a token counts as active.
        percentile: share of all tokens, layers and heads whose longest interval is at most W.
    """

    alpha: float = 1e-4
    percentile: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or not 0 < self.percentile <= 1:
            raise ThriftyError("lazyeviction: alpha and percentile are above 0, alpha below 1 and percentile at most 1")
