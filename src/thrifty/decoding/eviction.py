"""Evicting entries of the cache: when, how many, and which are never touched. Methods say which others go first."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thrifty.models.attention import AttentionPolicy, Reading, attention_probabilities, weighted

QUERY_BLOCK = 64
"""Tokens of a prompt whose attention is looked at together, so that memory does not grow with its square."""


class Eviction(AttentionPolicy):
    """Every so many steps, keeps the entries with the highest scores in every layer and key-value head.

    All heads keep equally many. Of entries with the same score the newer stays. The newest are always kept, and
    so are the first, or the prompt, if asked for. Keys stay as they were read, at the positions of the text.

    Args:
        name: of the method.
        budget: entries to keep; at most 1 for a share of the tokens that a row has read. While such a share is not
            above what is always kept, nothing is evicted.
        window: steps from one eviction to the next, and the newest entries that are always kept.
        protect_prompt: whether the prompt is always kept, even where that is more than the budget.
        first: entries at the beginning that are always kept.
    """

    def __init__(self, name: str, budget: float, window: int = 1, protect_prompt: bool = False, first: int = 0) -> None:
        self.name, self.budget, self.window = name, budget, window
        self.protect_prompt, self.first = protect_prompt, first

    def keep(self, stored: int, step: int, prompt: int) -> int:
        """Return how many entries a row keeps after a step; see `AttentionPolicy.keep`."""
        if step < 1 or step % self.window:
            return stored
        shared = self.budget <= 1
        budget = math.ceil(self.budget * (prompt + step)) if shared else int(self.budget)
        always = self.window + (prompt if self.protect_prompt else self.first)
        if shared and budget <= always:
            return stored
        return min(stored, max(budget, always))

    def newest(self, keep: int) -> int:
        """Return how many of the entries that are kept are the newest."""
        return self.window

    def score(self, layer: int, marks: Tensor, steps: Tensor) -> Tensor:
        """Return how much entries are worth keeping.

        Args:
            layer: which, from 0.
            marks: of the entries that are not always kept ``(rows, kv heads, entries, marks)``.
            steps: tokens of the response that each row has read ``(rows,)``.

        Returns:
            ``(rows, kv heads, entries)``, finite.
        """
        raise NotImplementedError

    def choose(self, layer: int, marks: Tensor, steps: Tensor, prompts: Tensor, keep: int) -> Tensor:
        """Return which entries rows keep in one layer; see `AttentionPolicy.choose`."""
        rows, heads, stored, _ = marks.shape
        old = stored - self.newest(keep)
        columns = torch.arange(stored, device=marks.device)
        first = prompts if self.protect_prompt else torch.full_like(prompts, self.first)
        scores = self.score(layer, marks[:, :, :old], steps)
        scores = scores.masked_fill((columns[:old] < first[:, None])[:, None], torch.inf)
        # newest first, so that a stable order puts the newer of two equals before the older
        order = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
        chosen = (old - 1 - order[:, :, : keep - (stored - old)]).sort(dim=-1).values
        return torch.cat([chosen, columns[old:].expand(rows, heads, -1)], dim=-1)


class WatchingEviction(Eviction):
    """Eviction by what tokens have attended to. Probabilities are of the entries that are still stored.

    Fused attention does not tell them. At a step of decoding they give the output too; for prompts and drafts they
    are computed beside it.
    """

    prompts: bool = False
    """Whether what the tokens of a prompt attend to counts."""

    def watches(self, newest: bool, frozen: bool) -> bool:
        """Tell whether a pass is to be seen; see `AttentionPolicy.watches`."""
        return not frozen and (newest or self.prompts)

    def grouped(self, probabilities: Tensor) -> Tensor:
        """Return one attention for each key-value head of those of its query heads, in dimension 2."""
        raise NotImplementedError

    def attend(
        self, reading: Reading, layer: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float
    ) -> Tensor | None:
        """Attend to everything; see `AttentionPolicy.attend`."""
        if reading.time > 1:
            return None
        reading.scratch = attention_probabilities(query, keys, mask, scaling)
        return weighted(reading.scratch[:, :, :, 0], values)

    def observe(self, reading: Reading, layer: int, query: Tensor, keys: Tensor, mask: Tensor, scaling: float) -> None:
        """Update the marks of all entries; see `AttentionPolicy.observe`."""
        marks = reading.cache.layers[layer].seen_marks()
        if not reading.newest:
            self._read_prompt(reading, marks, query, keys, mask, scaling)
            return
        alone = reading.time == 1
        attention = self.grouped(reading.scratch if alone else attention_probabilities(query, keys, mask, scaling))
        updated = self.updated(marks, attention[:, :, 0], reading.steps)
        if reading.counts is not None:
            updated = torch.where((reading.counts > 0)[:, None, None, None], updated, marks)
        marks.copy_(updated)
        if not alone:
            reading.seen[layer] = attention

    def _read_prompt(
        self, reading: Reading, marks: Tensor, query: Tensor, keys: Tensor, mask: Tensor, scaling: float
    ) -> None:
        time = query.shape[2]
        counts = marks.new_full((len(marks),), time) if reading.counts is None else reading.counts
        for start in range(0, time, QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            attention = self.grouped(attention_probabilities(query[:, :, block], keys, mask[:, :, block], scaling))
            real = torch.arange(start, start + attention.shape[2], device=marks.device) < counts[:, None]
            marks.copy_(self.with_prompt(marks, attention * real[:, None, :, None]))

    def with_prompt(self, marks: Tensor, attention: Tensor) -> Tensor:
        """Return the marks of entries once tokens of a prompt have attended to them.

        Args:
            marks: before ``(rows, kv heads, columns, marks)``.
            attention: 0 for padding ``(rows, kv heads, tokens, columns)``.
        """
        raise NotImplementedError
