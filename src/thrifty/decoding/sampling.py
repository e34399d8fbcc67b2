"""Choosing the next token: temperature, top-k, top-p, min-p, and randomness that belongs to the row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thrifty.models.base import Settings

Keys = npt.NDArray[np.uint64]


def row_key(seed: int, problem_id: str, sample: int) -> int:
    """Return the 64-bit key of a row's random stream, from what the row is and not where it runs."""
    digest = hashlib.blake2b(f"{seed}\0{problem_id}\0{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniforms(keys: Keys, counters: Keys, stream: int = 0) -> npt.NDArray[np.float64]:
    """Return one uniform number in [0, 1) for each row: a hash, so that there is no state to carry.

    The numbers of a row depend on its key, the stream and the counter only, whatever rows run beside it
    and however often the run was interrupted.

    Args:
        keys: of the rows, uint64 ``(rows,)``.
        counters: position in each row's stream, uint64 ``(rows,)``.
        stream: separates uses of randomness: sampling is 0, each controller has its own.
    """
    with np.errstate(over="ignore"):
        x = keys ^ _mix(counters * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream) * np.uint64(0xD1B54A32D192ED03))
        return (_mix(x) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: Keys) -> Keys:
    """SplitMix64's finaliser, twice as strong as one round of it needs to be for counters."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass
class Sampler:
    """The sampling settings of a batch of rows, as columns.

    Attributes:
        greedy: whether no row samples.
        temperature, top_k, top_p, min_p: ``(rows, 1)`` each; temperature is 1 in greedy rows.
        sampled: rows that sample, bool ``(rows,)``.
    """

    greedy: bool
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    sampled: Tensor

    @classmethod
    def of(cls, settings: Sequence[Settings], device: torch.device) -> Sampler:
        """Gather the settings of rows."""

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

        return cls(
            all(s.temperature == 0 for s in settings),
            column([s.temperature or 1.0 for s in settings]),
            column([s.top_k for s in settings]),
            column([s.top_p for s in settings]),
            column([s.min_p for s in settings]),
            torch.tensor([s.temperature > 0 for s in settings], device=device),
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the distribution each row samples from, ``(rows, vocab)``: temperature, then the filters.

        top-k and top-p keep whole ties out by order of token id, so that the kept set is a function of the
        logits alone.
        """
        probabilities = torch.softmax(logits.to(self.temperature.dtype) / self.temperature, dim=-1)
        drop = torch.zeros_like(probabilities, dtype=torch.bool)
        if bool((self.top_k > 0).any()) or bool((self.top_p < 1).any()):
            ordered, index = probabilities.sort(dim=-1, descending=True, stable=True)
            rank = torch.arange(ordered.shape[-1], device=logits.device)
            before = ordered.cumsum(-1) - ordered
            beyond = (self.top_k > 0) & (rank >= self.top_k) | (self.top_p < 1) & (before >= self.top_p)
            drop.scatter_(-1, index, beyond)
        if bool((self.min_p > 0).any()):
            drop |= probabilities < self.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(drop, 0.0)
        return probabilities / probabilities.sum(-1, keepdim=True)

    def choose(self, logits: Tensor, keys: Keys, counters: Keys, probabilities: Tensor | None = None) -> Tensor:
        """Return the next token of each row, int64 ``(rows,)``.

        Args:
            logits: ``(rows, vocab)``.
            keys: of the rows' random streams, uint64 ``(rows,)``.
            counters: how many tokens each row has chosen so far, uint64 ``(rows,)``.
            probabilities: of these logits, where they are known already.
        """
        best = logits.argmax(-1)
        if self.greedy:
            return best
        draws = torch.from_numpy(uniforms(keys, counters)).to(logits.device)[:, None]
        cumulative = (self.probabilities(logits) if probabilities is None else probabilities).cumsum(-1)
        # the first token whose cumulative mass exceeds the draw; scaled, for the sum may end below 1
        chosen = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)[:, 0]
        return torch.where(self.sampled, chosen.clamp(max=logits.shape[-1] - 1), best)
