"""Concept tokens: several tokens that a model reads as one position, as the weighted mean of their embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thrifty.models.torch import TorchModel

PART = 16_384
"""Tokens of the vocabulary that are embedded at a time, where each use of an embedding is computed."""


@dataclass(frozen=True)
class Concept:
    """Tokens of each row and their weights, the heaviest first; tokens of no weight may fill up a row.

    Attributes:
        weights: ``(rows, n)``; each row sums to 1.
        ids: int64 ``(rows, n)``, distinct in each row.
    """

    weights: Tensor
    ids: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Concept:
        """Return what is left of distributions behind top-k, then top-p, then min-p, renormalised after each of them.

        (.5, .3, .15, .05) with top_k 3 is (.5263, .3158, .1579), of which top_p .95 keeps all and min_p .5 the
        first two: (.625, .375). The sampler's filters see the same distribution one as the other, and keep more.

        Args:
            probabilities: ``(rows, vocab)``.
            top_k: keep the k likeliest tokens, 0 for all.
            top_p: keep the likeliest tokens that hold this much probability.
            min_p: drop tokens less likely than this fraction of the likeliest.
        """
        # stable: of equals the first leads, as it does for an arg max
        weights, ids = probabilities.sort(dim=-1, descending=True, stable=True)
        if top_k:
            weights, ids = weights[:, :top_k], ids[:, :top_k]
            weights = weights / weights.sum(-1, keepdim=True)
        if top_p < 1:
            weights = weights.masked_fill(weights.cumsum(-1) - weights >= top_p, 0.0)
            weights = weights / weights.sum(-1, keepdim=True)
        if min_p > 0:
            weights = weights.masked_fill(weights < min_p * weights[:, :1], 0.0)
            weights = weights / weights.sum(-1, keepdim=True)
        return cls(weights, ids)

    def top(self, n: int) -> Concept:
        """Return the n heaviest tokens, or all where there are fewer, their weights renormalised."""
        weights = self.weights[:, :n]
        return Concept(weights / weights.sum(-1, keepdim=True), self.ids[:, :n])

    def reweighted(self, weights: Tensor) -> Concept:
        """Return the same tokens with other weights ``(rows, n)``, the heaviest first."""
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        return Concept(ordered / ordered.sum(-1, keepdim=True), self.ids.gather(-1, order))


def mix(model: TorchModel, concept: Concept) -> Tensor:
    """Return the vectors ``(rows, hidden)`` that stand for concepts."""
    embedded = model.embed(concept.ids)
    return (concept.weights.to(embedded.dtype)[..., None] * embedded).sum(1)


def mix_all(model: TorchModel, probabilities: Tensor) -> Tensor:
    """Return the mean embedding of the whole vocabulary, weighted by distributions.

    Args:
        model: whose input embeddings.
        probabilities: ``(rows, vocab)``.

    Returns:
        Vectors ``(rows, hidden)``.
    """
    table, weights = model.network.get_input_embeddings(), probabilities.to(model.dtype)
    if type(table) is torch.nn.Embedding:
        mixed: Tensor = weights @ table.weight[: weights.shape[-1]]
        return mixed
    # others do more than look up, as Gemma's, which scale: what they give for all tokens is a large copy of the table
    vocabulary = torch.arange(weights.shape[-1], device=weights.device)
    parts = [slice(start, start + PART) for start in range(0, len(vocabulary), PART)]
    return torch.stack([weights[:, part] @ model.embed(vocabulary[part]) for part in parts]).sum(0)
