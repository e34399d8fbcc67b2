"""Random eviction: keep the prompt, the newest entries, and any others. What every rule of eviction has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from thrifty.decoding.eviction import Eviction
from thrifty.decoding.sampling import uniforms
from thrifty.methods.shared.attention import AttentionMethod, check_eviction
from thrifty.models.attention import AttentionPolicy
from thrifty.models.torch import TorchModel

STREAM = 7


class _AtRandom(Eviction):
    def score(self, layer: int, marks: Tensor, steps: Tensor) -> Tensor:
        rows, heads, entries, _ = marks.shape
        # a row draws by how far it is, so that its neighbours do not matter
        keys = np.array(steps.tolist(), dtype=np.uint64).repeat(heads * entries)
        places = np.arange(heads * entries, dtype=np.uint64) + np.uint64(layer << 40)
        draws = torch.from_numpy(uniforms(keys, np.tile(places, rows), STREAM))
        return draws.view(rows, heads, entries).to(marks.device)


@dataclass(frozen=True, kw_only=True)
class RandomEviction(AttentionMethod):
    """Evict keys and values at random, in every layer and head, but never the prompt's nor the newest.

    Attributes:
        budget: entries to keep, the prompt included; up to 1 a share of the tokens that the row has read, where 1
            keeps everything.
        window: steps between evictions, and newest entries that are always kept.
    """

    slug: ClassVar[str] = "random-eviction"
    budget: float = 0.5
    window: int = 1

    def __post_init__(self) -> None:
        check_eviction(self.slug, self.budget, self.window)

    def attention(self, model: TorchModel) -> AttentionPolicy | None:
        return None if self.budget == 1 else _AtRandom(self.slug, self.budget, self.window, protect_prompt=True)
