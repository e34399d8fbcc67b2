"""What rows hold of their text under an attention policy, and the account of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from thrifty.decoding.draft import Walk
from thrifty.models.attention import AttentionPolicy, Reading, attending
from thrifty.models.cache import RowCache
from thrifty.models.torch import Layout, TorchModel


@dataclass
class Holding:
    """What a row has given up, and what its tokens have attended to since the prompt was read.

    Attributes:
        prompt: tokens that it read before its first step.
        evicted: entries of the cache that it gave up.
        since: tokens that it had read when it last did; it cannot be rewound behind.
        evictions: how often it did.
        peak: entries that it held at most.
        attended: entries that its newest tokens attended to, summed over steps and layers.
        full: those that full attention would have.
    """

    prompt: int
    evicted: int = 0
    since: int = 0
    evictions: int = 0
    peak: int = 0
    attended: int = 0
    full: int = 0

    def step(self, stored: int) -> int:
        """Return how many tokens of the response it has read.

        Args:
            stored: entries that it holds.
        """
        return stored + self.evicted - self.prompt

    def reaches(self, position: int) -> bool:
        """Tell whether nothing was evicted since the row stood at a position, so that it can be rewound to there."""
        return not self.evicted or position >= self.since

    def anew(self) -> Holding:
        """Return the holding of a row whose text is read again from the beginning; the account goes on."""
        return replace(self, evicted=0, since=0)


class Holdings:
    """The holdings of a session's rows, in their order.

    Args:
        model: of the session.
        cache: of the session.
        policy: decides what rows attend to and keep, None for everything.

    Attributes:
        frozen: whether rows only attend as the policy says: nothing is noted or evicted, as in a probe.
    """

    def __init__(self, model: TorchModel, cache: RowCache, policy: AttentionPolicy | None) -> None:
        self.model, self.cache, self.policy = model, cache, policy
        self.frozen = False
        self.rows: list[Holding] = []

    def add(self, prompts: Iterable[int]) -> None:
        """Add rows that begin with prompts of some lengths."""
        self.rows += [Holding(prompt) for prompt in prompts]

    def adopt(self, other: Self, rows: Iterable[int] | None = None) -> None:
        """Add copies of rows of another session, None for all."""
        self.rows += [replace(other.rows[row]) for row in (range(len(other.rows)) if rows is None else rows)]

    def positions(self, lengths: Tensor) -> Tensor:
        """Return how many tokens all rows have read, int64 ``(rows,)``.

        Args:
            lengths: entries that they hold, int64 ``(rows,)``.
        """
        evicted = self._evicted(range(len(self.rows)), lengths)
        return lengths if evicted is None else lengths + evicted

    def _evicted(self, places: Sequence[int], like: Tensor) -> Tensor | None:
        evicted = [self.rows[place].evicted for place in places]
        return like.new_tensor(evicted) if any(evicted) else None

    def aim(
        self,
        places: Sequence[int],
        stored: Sequence[int],
        lengths: Tensor,
        time: int,
        newest: bool,
        layout: Layout | None = None,
        counts: Tensor | None = None,
        seen: dict[int, Tensor] | None = None,
    ) -> AbstractContextManager[None]:
        """Say where the next pass writes, and return the context in which it is to be run.

        Args:
            places: rows of the pass, ascending; under a policy they follow each other.
            stored: entries that each of them holds.
            lengths: the same on the device, int64 ``(rows,)``.
            time: tokens that the pass adds to each, padding counted.
            newest: see `Reading`.
            layout: where they stand, None for one after the other.
            counts: see `Reading`.
            seen: see `Reading`.
        """
        longest, policy = max(stored), self.policy
        evicted = marks = None
        watched: AbstractContextManager[None] = nullcontext()
        if policy is not None:
            evicted = self._evicted(places, lengths)
            before = lengths.new_tensor([self.rows[place].prompt - self.rows[place].evicted for place in places])
            steps = lengths - before + 1
            if policy.marks:
                positions = layout.positions if layout else torch.arange(time, device=lengths.device)[None]
                marks = policy.fresh((steps[:, None] + positions - positions[:, :1]).clamp(min=0))
                marks = marks.to(torch.promote_types(self.model.dtype, torch.float32))
            if policy.watches(newest, self.frozen):
                held = [length + 1 for length in stored]
                seen = {} if seen is None else seen
                reading = Reading(self.cache, lengths + 1, held, steps, time, newest, counts, seen)
                watched = attending(self.model.network, policy, reading)
        self.cache.aim(places, lengths, time, longest, min(stored) == longest, evicted, marks)
        return watched

    def settle(self, lengths: list[int], rows: Iterable[int], walks: Sequence[Walk | None] = ()) -> bool:
        """Account for a step of some rows, and evict what the policy does not keep.

        Args:
            lengths: entries that each row holds, the new one included; what goes is taken off.
            rows: those that made a step.
            walks: of all rows, where the new tokens were drafted.

        Returns:
            Whether anything went.
        """
        policy, layers = self.policy, self.model.layers
        if policy is None or self.frozen:
            return False
        groups: dict[tuple[int, int], list[int]] = {}
        for row in rows:
            holding, stored = self.rows[row], lengths[row]
            step = holding.step(stored)
            holding.peak = max(holding.peak, stored)
            holding.attended += layers * stored if walks else policy.attended(stored, layers)
            holding.full += layers * (stored + holding.evicted)
            if walks and (walk := walks[row]) is not None and walk.attention:
                self._mark(policy, row, walk.attention, walk.columns(), step)
            keep = policy.keep(stored, step, holding.prompt)
            if keep < stored:
                groups.setdefault((stored, keep), []).append(row)
        for (stored, keep), group in groups.items():
            self._evict(policy, group, stored, keep)
            for row in group:
                lengths[row] = keep
        return bool(groups)

    def _mark(
        self, policy: AttentionPolicy, row: int, attention: Mapping[int, Tensor], columns: Sequence[int], step: int
    ) -> None:
        """Let a drafted token that came true mark what it attended to, as if it had been read alone."""
        steps = torch.tensor([step], device=self.cache.layers[0].keys.device)
        base, *path = columns
        for layer, found in attention.items():
            mine = found[:, path[-1] - base]
            mine = torch.cat([mine[:, : base + 1], mine[:, path]], dim=1)
            marks = self.cache.layers[layer].marks[row : row + 1, :, : mine.shape[1]]
            marks.copy_(policy.updated(marks, mine[None], steps))

    def _evict(self, policy: AttentionPolicy, rows: Sequence[int], stored: int, keep: int) -> None:
        index = torch.tensor(rows, dtype=torch.int64, device=self.cache.layers[0].keys.device)
        steps = index.new_tensor([self.rows[row].step(stored) for row in rows])
        prompts = index.new_tensor([self.rows[row].prompt for row in rows])
        for number, layer in enumerate(self.cache.layers):
            layer.keep(index, policy.choose(number, layer.marks_of(index, stored), steps, prompts, keep))
        for row in rows:
            holding = self.rows[row]
            holding.since = stored + holding.evicted
            holding.evicted += stored - keep
            holding.evictions += 1

    def room(self, row: int, stored: int, most: int) -> int:
        """Return how many tokens may be drafted behind a row's next one, so that nothing is evicted under them.

        Args:
            row: which.
            stored: entries that it holds.
            most: beyond which the number does not matter.
        """
        policy, holding = self.policy, self.rows[row]
        if policy is None:
            return most
        for room in range(most):
            entries = stored + 1 + room
            if policy.keep(entries, holding.step(entries), holding.prompt) < entries:
                return room
        return most

    def account(self, row: int, stored: int) -> dict[str, Any]:
        """Return what a trace tells of its row.

        Args:
            row: which.
            stored: entries that it holds.
        """
        policy, holding = self.policy, self.rows[row]
        if policy is None:
            return {}
        seen = [layer.marks[row, :, :stored] for layer in self.cache.layers] if policy.marks else []
        found = {
            "attended": holding.attended,
            "full": holding.full,
            "peak": max(holding.peak, stored),
            "kept": stored,
            "evicted": holding.evicted,
            "evictions": holding.evictions,
            "metadata": policy.marks,
        }
        return {policy.name: {**found, **policy.account(seen)}}
