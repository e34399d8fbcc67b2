"""Two policies for tests of what evicts: one that goes by age alone, and one that watches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thrifty.decoding.eviction import Eviction, WatchingEviction


class Newest(Eviction):
    """Keeps the first and the newest entries."""

    def score(self, layer: int, marks: Tensor, steps: Tensor) -> Tensor:
        return torch.arange(marks.shape[2]).expand(marks.shape[:3]).double()


class Attended(WatchingEviction):
    """Keeps what was attended to most, prompts not counted, and notes the step at which each entry came."""

    marks = 2

    def fresh(self, steps: Tensor) -> Tensor:
        return torch.stack([steps, torch.zeros_like(steps)], dim=-1)

    def grouped(self, probabilities: Tensor) -> Tensor:
        return probabilities.sum(2)

    def updated(self, marks: Tensor, attention: Tensor, steps: Tensor) -> Tensor:
        return torch.stack([marks[..., 0], marks[..., 1] + attention], dim=-1)

    def score(self, layer: int, marks: Tensor, steps: Tensor) -> Tensor:
        return marks[..., 1]


def newest(window: int = 1, budget: float = 6) -> Newest:
    return Newest("newest", budget, window, first=2)


def attended(window: int = 3, budget: float = 0.6) -> Attended:
    return Attended("attended", budget, window)


POLICIES = pytest.mark.parametrize("make", [newest, attended])
