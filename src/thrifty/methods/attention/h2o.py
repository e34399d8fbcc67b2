"""H2O: keep the newest entries and those that got the most attention so far, the heavy hitters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thrifty.decoding.eviction import WatchingEviction
from thrifty.errors import ThriftyError
from thrifty.methods.shared.attention import AttentionMethod, check_eviction
from thrifty.models.attention import AttentionPolicy
from thrifty.models.torch import TorchModel


class _HeavyHitters(WatchingEviction):
    marks = 1
    prompts = True

    def __init__(self, name: str, budget: float, window: int, recent: float) -> None:
        super().__init__(name, budget, window)
        self.recent = recent

    def newest(self, keep: int) -> int:
        return max(self.window, int(self.recent * keep))

    def grouped(self, probabilities: Tensor) -> Tensor:
        return probabilities.sum(2)

    def updated(self, marks: Tensor, attention: Tensor, steps: Tensor) -> Tensor:
        return marks + attention[..., None]

    def with_prompt(self, marks: Tensor, attention: Tensor) -> Tensor:
        return marks + attention.sum(2)[..., None]

    def score(self, layer: int, marks: Tensor, steps: Tensor) -> Tensor:
        return marks[..., 0]


@dataclass(frozen=True, kw_only=True)
class H2O(AttentionMethod):
    """Evict keys and values but for the newest and the heavy hitters, whose attention summed over all steps is largest.

    The attention of a prompt's tokens counts. It is summed over the query heads of each key-value head, which
    the paper, older than such heads, does not say.

    Source: H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, arXiv 2306.14048.

    Attributes:
        budget: entries to keep; up to 1 a share of the tokens that the row has read, where 1 keeps everything.
        recent: share of the budget that goes to the newest entries.
        window: steps between evictions, and newest entries that are always kept; the paper evicts at every step.
    """

    slug: ClassVar[str] = "h2o"
    budget: float = 0.5
    recent: float = 0.5
    window: int = 1

    def __post_init__(self) -> None:
        check_eviction(self.slug, self.budget, self.window)
        if not 0 <= self.recent <= 1:
            raise ThriftyError("h2o: recent is a share from 0 to 1")

    def attention(self, model: TorchModel) -> AttentionPolicy | None:
        return None if self.budget == 1 else _HeavyHitters(self.slug, self.budget, self.window, self.recent)
