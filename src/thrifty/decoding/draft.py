"""Drafts: tokens that may come next, read by the model in one pass and kept as far as the row goes that way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from thrifty.decoding.sampling import uniforms

STREAM = 5
"""Of the random numbers that decide on drafts."""


@dataclass(frozen=True)
class Draft:
    """A tree of tokens that may follow a row's newest one.

    Attributes:
        tokens: of the nodes; those of siblings differ.
        parents: the node before each, -1 for the row's newest token. A node stands behind its parent.
        chances: what siblings were drawn from: for a node (-1 for the newest token) the probabilities of tokens,
            by token; nothing for children that are simply the likeliest.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    chances: Mapping[int, Mapping[int, float]] = field(default_factory=dict)

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> Draft:
        """Return the draft of tokens that follow each other."""
        return cls(tokens, range(-1, len(tokens) - 1))

    def __len__(self) -> int:
        return len(self.tokens)

    def clipped(self, depth: int) -> Draft:
        """Return the draft without the nodes below a depth."""
        if all(d <= depth for d in self.depths):
            return self
        # breadth first or not, a node that stays has a parent that stays
        kept = [node for node, d in enumerate(self.depths) if d <= depth]
        place = {node: i for i, node in enumerate(kept)} | {-1: -1}
        chances = {place[node]: q for node, q in self.chances.items() if node in place}
        return Draft([self.tokens[n] for n in kept], [place[self.parents[n]] for n in kept], chances)

    @cached_property
    def depths(self) -> list[int]:
        """Of the nodes; 1 for those that follow the newest token."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 + (depths[parent] if parent >= 0 else 0))
        return depths

    @cached_property
    def children(self) -> dict[int, dict[int, int]]:
        """For each node that has any, its children in order: token to node."""
        found: dict[int, dict[int, int]] = {}
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            found.setdefault(parent, {})[token] = node
        return found


def layout(drafts: Sequence[Draft], time: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the depths ``(rows, time)`` and the mutual visibility ``(rows, time, time)`` of newest tokens and drafts.

    Position 0 is the newest token. A node sees it, itself and the nodes that lead to it; padding sees as much as
    its own position alone, so that no row of a mask is empty.

    Args:
        drafts: of the rows.
        time: 1 and the nodes of the largest draft.
        device: of the result.
    """
    depths = np.zeros((len(drafts), time), dtype=np.int64)
    visible = np.eye(time, dtype=np.bool_)[None].repeat(len(drafts), 0)
    for row, draft in enumerate(drafts):
        if not draft:
            continue
        depths[row, 1 : len(draft) + 1] = draft.depths
        mine = visible[row]
        mine[1 : len(draft) + 1, 0] = True
        for node, parent in enumerate(draft.parents):
            if parent >= 0:
                mine[node + 1] |= mine[parent + 1]
    return torch.from_numpy(depths).to(device), torch.from_numpy(visible).to(device)


def choose_drafted(
    probabilities: Tensor, drafted: Sequence[int], chances: Mapping[int, float], key: int, counter: int
) -> int:
    """Choose a row's next token so that it is a drafted one as often as can be, and distributed as if none were.

    Each drafted token x is taken with probability min(1, p(x) / q(x)); where it is not, p becomes the rest
    max(p - q, 0), and x leaves q. What is left of p in the end gives the token.

    Args:
        probabilities: p, that the row samples from ``(vocab,)``.
        drafted: distinct tokens, in the order in which they were drawn without replacement from q.
        chances: q, by token; it sums to 1.
        key: of the row's random stream.
        counter: tokens that the row has written.
    """
    p, q = probabilities.double().cpu().numpy(), np.zeros(len(probabilities))
    q[list(chances)] = list(chances.values())
    counters = np.arange(len(drafted) + 1, dtype=np.uint64) + np.uint64(counter * 1024)
    draws = uniforms(np.full(len(counters), key, dtype=np.uint64), counters, STREAM)
    for token, draw in zip(drafted, draws, strict=False):
        if draw * q[token] < p[token]:
            return token
        rest = np.maximum(p - q, 0.0)
        p = rest / rest.sum() if rest.sum() > 0 else p
        q[token] = 0.0
        q = q / q.sum() if q.sum() > 0 else q
    cumulative = p.cumsum()
    return int(np.searchsorted(cumulative, draws[-1] * cumulative[-1], side="right"))


@dataclass
class Walk:
    """How far a row has gone into its draft.

    Attributes:
        draft: which.
        base: column of the newest token at the time; node n lies n + 1 columns behind it.
        logits: behind the newest token and each node ``(1 + nodes, vocab)``.
        states: of tapped layers, likewise ``(1 + nodes, hidden)``.
        attention: by layer, what an attention policy keeps of each ``(kv heads, 1 + nodes, columns)``.
        node: where the row is, -1 before the first one.
        steps: nodes that it went along.
    """

    draft: Draft
    base: int
    logits: Tensor
    states: Mapping[int, Tensor]
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    node: int = -1
    steps: int = 0

    def child(self, token: int) -> int | None:
        """Return the node to which a token leads."""
        return self.draft.children.get(self.node, {}).get(token)

    def columns(self) -> list[int]:
        """Return where the newest token and the nodes that the row went along stood in the pass that read them."""
        path: list[int] = []
        node = self.node
        while node >= 0:
            path.append(self.base + 1 + node)
            node = self.draft.parents[node]
        return [self.base, *reversed(path)]
