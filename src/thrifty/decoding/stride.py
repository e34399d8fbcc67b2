"""Rows that nobody steers go along their drafts in one stride: all tokens are chosen at once, then looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thrifty.decoding.draft import Walk
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import Keys, Sampler


class Strides(NamedTuple):
    """What rows wrote along their drafts.

    Attributes:
        paths: tokens of each row that its draft held; the row stands behind the last of them.
        ends: a further token of each row, which the draft did not hold or with which the row stopped; None where the
            row has yet to choose one, for what it writes next is forced.
        owners: the index of the row of each choice, those of the first tokens first.
        written: tokens that the row had written before each choice.
        probabilities: that each choice was made from ``(choices, vocab)``.
    """

    paths: list[list[int]]
    ends: list[int | None]
    owners: list[int]
    written: list[int]
    probabilities: Tensor


def stride(rows: Sequence[Row], walks: Sequence[Walk], keys: Keys, write: Callable[[Row, int], None]) -> Strides:
    """Let rows write as far as their drafts go.

    The token behind every node is chosen in one call, also where no row comes by. Chosen one by one, on the way, they
    would be the same: a choice depends on the row's random stream and on how many tokens it has written.

    Args:
        rows: which, none steered or forced; drafts of those that sample hold no chances.
        walks: where they stand, before the first node.
        keys: of their random streams, uint64 ``(rows,)``.
        write: gives a row its next token, and may stop it or force what follows.
    """
    sizes = [1 + len(walk.draft) for walk in walks]
    starts = [0, *np.cumsum(sizes).tolist()]
    owner = np.repeat(np.arange(len(rows)), sizes)
    depths = np.concatenate([[0, *walk.draft.depths] for walk in walks]).astype(np.uint64)
    counters = np.array([len(row.ids) for row in rows], dtype=np.uint64)[owner] + depths
    logits = torch.cat([walk.logits[:size] for walk, size in zip(walks, sizes, strict=True)])
    sampler = Sampler.of([rows[i].settings for i in owner.tolist()], logits.device)
    probabilities = sampler.probabilities(logits)
    chosen: list[int] = sampler.choose(logits, keys[owner], counters, probabilities).tolist()
    paths: list[list[int]] = [[] for _ in rows]
    ends: list[int | None] = [None] * len(rows)
    nodes = [-1] * len(rows)
    taken, owners, written = list[int](), list[int](), list[int]()
    active = list(range(len(rows)))
    while active:
        following = []
        for i in active:
            row, place = rows[i], starts[i] + 1 + nodes[i]
            taken.append(place)
            owners.append(i)
            written.append(len(row.ids))
            token = chosen[place]
            write(row, token)
            node = walks[i].draft.children.get(nodes[i], {}).get(token)
            if node is None or row.stopped is not None:
                ends[i] = token
                continue
            nodes[i] = node
            paths[i].append(token)
            if not row.forced:
                following.append(i)
        active = following
    return Strides(paths, ends, owners, written, probabilities[taken])
