"""A table of what follows n-grams: running averages of next-token distributions, in arrays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

WIDTH = 10
"""Tokens kept of a distribution."""
WAITING = 1024
"""Contexts that wait to be learnt at the most."""

Tokens = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float64]


def merge(
    known: Tokens, averages: Weights, counts: npt.NDArray[np.int64], tokens: Tokens, probabilities: Weights
) -> tuple[Tokens, Weights]:
    """Return k/(k+1) of what is known and 1/(k+1) of what is new, the likeliest tokens first; -1 stands for none.

    {a: .6, b: .4} and {a: .2, c: .8} give a .4, b .2, c .4; with {b: 1} as the third, a .2667, b .4667, c .2667.

    Args:
        known: tokens of the averages so far, int32 ``(n, width)``.
        averages: their weights ``(n, width)``.
        counts: k, distributions in each average, int64 ``(n,)``.
        tokens: of the new distributions, int32 ``(n, width)``; a token other than -1 stands once in a row.
        probabilities: their weights ``(n, width)``.

    Returns:
        Tokens and weights of the new averages, cut to the same width.
    """
    share = 1.0 / (counts + 1.0)[:, None]
    both = np.concatenate([known, tokens], 1)
    weights = np.concatenate([averages * (1.0 - share), probabilities * share], 1)
    rows = np.arange(len(both))[:, None]
    order = both.argsort(1, kind="stable")
    both, weights = both[rows, order], weights[rows, order]
    twin = both[:, 1:] == both[:, :-1]
    weights[:, :-1] += np.where(twin, weights[:, 1:], 0.0)
    weights[:, 1:][twin] = 0.0
    # ties go to the smaller token: what is kept must not depend on the order of the arrays
    order = (-weights).argsort(1, kind="stable")[:, : known.shape[1]]
    weights = weights[rows, order]
    return np.where(weights > 0, both[rows, order], -1), weights


class NGramTable:
    """Averages of the distributions that followed n-grams, apart for each owner.

    Contexts are learnt when they are next looked up, all at once: many small updates are slow, one large one is not.

    Args:
        orders: lengths n of the n-grams, those to be tried first in front.
        capacity: n-grams kept at the most, some 250 bytes each. Where they are more, owners are forgotten, the one
            least recently learnt of first; of the last one its older half.

    Attributes:
        span: tokens of a context that matter.
    """

    def __init__(self, orders: Sequence[int], capacity: int = 1 << 18) -> None:
        self.orders, self.span, self.capacity = tuple(orders), max(orders), capacity
        self._indices: OrderedDict[Hashable, dict[tuple[int, ...], int]] = OrderedDict()
        self._free: list[int] = []
        self._tokens: Tokens = np.zeros((0, WIDTH), dtype=np.int32)
        self._weights: npt.NDArray[np.float32] = np.zeros((0, WIDTH), dtype=np.float32)
        self._counts: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._owners: list[Hashable] = []
        self._contexts: list[tuple[int, ...]] = []
        self._fresh: list[tuple[Tokens, Weights]] = []

    def __len__(self) -> int:
        """Return how many n-grams are stored."""
        self._learn()
        return sum(map(len, self._indices.values()))

    def observe(
        self,
        owners: Sequence[Hashable],
        contexts: Sequence[tuple[int, ...]],
        tokens: npt.NDArray[np.int64],
        probabilities: Weights,
    ) -> None:
        """Note what follows some contexts.

        Args:
            owners: of each context.
            contexts: tokens up to where the distribution holds, `span` of them or as many as there are.
            tokens: the likeliest of each distribution, int64 ``(contexts, up to WIDTH)``.
            probabilities: theirs ``(contexts, up to WIDTH)``.
        """
        if (missing := WIDTH - tokens.shape[1]) > 0:
            tokens = np.pad(tokens, ((0, 0), (0, missing)), constant_values=-1)
            probabilities = np.pad(probabilities, ((0, 0), (0, missing)))
        self._owners += owners
        self._contexts += contexts
        self._fresh.append((tokens.astype(np.int32), probabilities))
        if len(self._contexts) >= WAITING:
            self._learn()

    def look_up(
        self, owners: Sequence[Hashable], contexts: Sequence[tuple[int, ...]]
    ) -> tuple[list[int], Tokens, Weights]:
        """Return the distributions behind the longest known n-grams at the ends of contexts.

        Args:
            owners: of each context.
            contexts: as in `observe`.

        Returns:
            Indices of the contexts of which one is known; for each of these its tokens ``(found, WIDTH)``, the
            likeliest first, and their probabilities, which sum to 1; a token of probability 0 is none.
        """
        self._learn()
        found, slots = list[int](), list[int]()
        for i, (owner, context) in enumerate(zip(owners, contexts, strict=True)):
            index = self._indices.get(owner)
            if index is None:
                continue
            for n in self.orders:
                slot = index.get(context[-n:])
                if slot is not None:
                    found.append(i)
                    slots.append(slot)
                    break
        weights = self._weights[slots].astype(np.float64)
        # the tail was cut off when it was stored; only what is drawn from must sum to 1
        return found, self._tokens[slots], weights / weights.sum(1, keepdims=True)

    def _learn(self) -> None:
        """Merge what was observed since the last time."""
        if not self._fresh:
            return
        tokens, weights = (np.concatenate(parts) for parts in zip(*self._fresh, strict=True))
        self._reserve(len(tokens) * len(self.orders))
        sources, slots = list[int](), list[int]()
        for source, (owner, context) in enumerate(zip(self._owners, self._contexts, strict=True)):
            index = self._indices.setdefault(owner, {})
            self._indices.move_to_end(owner)
            for n in self.orders:
                if n > len(context):
                    continue
                key = context[-n:]
                slot = index.get(key)
                if slot is None:
                    slot = index[key] = self._free.pop()
                sources.append(source)
                slots.append(slot)
        self._owners, self._contexts, self._fresh = [], [], []
        new, target = np.array(sources, dtype=np.int64), np.array(slots, dtype=np.int64)
        while len(target):
            # an average that several of the new distributions go into takes them one after the other
            first = np.unique(target, return_index=True)[1] if len(set(slots)) < len(slots) else slice(None)
            into, what = target[first], new[first]
            stored = (self._tokens[into], self._weights[into].astype(np.float64), self._counts[into])
            self._tokens[into], self._weights[into] = merge(*stored, tokens[what], weights[what])
            self._counts[into] += 1
            new, target = np.delete(new, first), np.delete(target, first)

    def _reserve(self, count: int) -> None:
        """Have as many empty slots: forget what is over capacity, and go beyond it where a single round needs more."""
        while len(self._free) < count and len(self._tokens) >= self.capacity and self._indices:
            owner, index = next(iter(self._indices.items()))
            if len(self._indices) > 1 or len(index) < 2:
                del self._indices[owner]
                gone = list(index.values())
            else:
                gone = [index.pop(key) for key in list(islice(index, len(index) // 2))]
            self._tokens[gone], self._weights[gone], self._counts[gone] = -1, 0.0, 0
            self._free += gone
        missing, size = count - len(self._free), len(self._tokens)
        if missing > 0:
            new = max(missing, min(max(1024, size), self.capacity - size))
            self._tokens = np.concatenate([self._tokens, np.full((new, WIDTH), -1, dtype=np.int32)])
            self._weights = np.concatenate([self._weights, np.zeros((new, WIDTH), dtype=np.float32)])
            self._counts = np.concatenate([self._counts, np.zeros(new, dtype=np.int64)])
            self._free += range(size, size + new)
