"""Sliding window with sinks: keep the first few entries and the newest ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thrifty.decoding.eviction import Eviction
from thrifty.errors import ThriftyError
from thrifty.methods.shared.attention import AttentionMethod, check_eviction
from thrifty.models.attention import AttentionPolicy
from thrifty.models.torch import TorchModel


class _NewestFirst(Eviction):
    def score(self, layer: int, marks: Tensor, steps: Tensor) -> Tensor:
        return torch.arange(marks.shape[2], device=marks.device).expand(marks.shape[:3]).double()


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(AttentionMethod):
    """Evict all keys and values but those of the first few tokens, which soak up attention, and of the newest.

    Source: Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453. Unlike there, keys keep the
    positions that they were read at: responses stay within the model's context.

    Attributes:
        budget: entries to keep, sinks included; up to 1 a share of the tokens that the row has read, where 1 keeps
            everything.
        sinks: first tokens that are always kept.
        window: steps between evictions; the paper evicts at every one.
    """

    slug: ClassVar[str] = "sliding-window"
    budget: float = 0.5
    sinks: int = 4
    window: int = 1

    def __post_init__(self) -> None:
        check_eviction(self.slug, self.budget, self.window)
        if self.sinks < 0 or 1 < self.budget <= self.window + self.sinks:
            raise ThriftyError("sliding-window: sinks must be at least 0, and with the window less than the budget")

    def attention(self, model: TorchModel) -> AttentionPolicy | None:
        return None if self.budget == 1 else _NewestFirst(self.slug, self.budget, self.window, first=self.sinks)
