"""A batch of sequences on one model, with their key-value cache: the verbs every system is written on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from thrifty.decoding.draft import Draft, Walk, layout
from thrifty.decoding.holding import Holdings
from thrifty.errors import ContextOverflow
from thrifty.models.attention import AttentionPolicy
from thrifty.models.cache import RowCache
from thrifty.models.torch import Layout, TorchModel


class Session:
    """Rows of tokens whose next-token logits are known.

    Rows differ in length and never see each other. After every verb, ``logits[i]`` is the model's raw
    distribution over the token that follows row ``i``.

    Args:
        model: whose rows these are.
        policy: decides what they attend to and keep, None for everything.

    Attributes:
        lengths: entries stored for each row: its positions, less what the policy evicted.
        held: what the policy made of them.
        logits: ``(rows, vocab)``, float32 or the model's float64.
        hidden: for layers tapped in the last pass, the state at each row's last position: layer to
            ``(rows, hidden)``; NaN for a row that entered before they were tapped.
        forward_passes: passes of the model so far.
        walks: where each row stands in its draft, None for a row without one.
    """

    def __init__(self, model: TorchModel, policy: AttentionPolicy | None = None) -> None:
        self.model, self.policy = model, policy
        self.cache = RowCache(model.layers, policy.marks if policy else 0)
        self.held = Holdings(model, self.cache, policy)
        self.lengths: list[int] = []
        self.forward_passes = 0
        self.hidden: dict[int, Tensor] = {}
        self.walks: list[Walk | None] = []
        self._tapped: dict[int, Tensor] | None = None
        self._lengths = torch.zeros(0, dtype=torch.int64, device=model.device)
        self._working_dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        self.logits = torch.zeros(0, model.vocabulary_size, dtype=self._working_dtype, device=model.device)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def positions(self) -> list[int]:
        """How many tokens each row has read."""
        return [stored + holding.evicted for stored, holding in zip(self.lengths, self.held.rows, strict=True)]

    @torch.inference_mode()
    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """Add rows behind the present ones.

        Args:
            prompts: their token ids, at least one each.

        Raises:
            ContextOverflow: a prompt leaves no room in the model's context.
        """
        for prompt in prompts:
            if len(prompt) >= self.model.context_length:
                raise ContextOverflow(
                    f"the prompt has {len(prompt)} tokens, but {self.model.name!r} has a context of "
                    f"{self.model.context_length}: shorten the prompt or load a model with a longer context"
                )
        places = range(len(self), len(self) + len(prompts))
        self.lengths += [0] * len(prompts)
        self.held.add(map(len, prompts))
        self.walks += [None] * len(prompts)
        self._lengths = torch.cat([self._lengths, self._lengths.new_zeros(len(prompts))])
        logits = self._advance(places, prompts)
        self.logits = torch.cat([self.logits, logits])

    @torch.inference_mode()
    def append(self, ids: Tensor | Sequence[Sequence[int]]) -> None:
        """Append tokens to all rows.

        Args:
            ids: one token for each row, int64 ``(rows,)``; or a list of tokens for each row, which may
                differ in number and be empty (that row's logits stay).
        """
        if isinstance(ids, Tensor):
            self.logits = self._pass(ids[:, None].to(self.model.device), None, newest=True)[:, -1]
            self._grow(1)
            self._settle(range(len(self)))
            return
        self._forget_drafts()
        counts = [len(row) for row in ids]
        if not any(counts):
            return
        newest = max(counts) == 1
        # a policy looks at all rows; without one, only those with something to read are read
        asked = [row for row, count in enumerate(counts) if count or self.policy is not None]
        logits = self._advance(asked, [ids[row] for row in asked], newest)
        moved = torch.tensor([counts[row] > 0 for row in asked], device=logits.device)
        places = torch.tensor(asked, device=logits.device)[moved]
        self.logits = self.logits.index_copy(0, places, logits[moved])
        if newest:
            self._settle(places.tolist())

    @torch.inference_mode()
    def append_all(self, ids: Tensor) -> Tensor:
        """Append the same number of tokens to every row and return the logits behind each of them.

        Args:
            ids: int64 ``(rows, time)``.

        Returns:
            Logits ``(rows, time, vocab)``: what verification of a draft needs.
        """
        return self.append_laid_out(ids, None)

    @torch.inference_mode()
    def append_laid_out(self, ids: Tensor, laid_out: Layout | None) -> Tensor:
        """Append tokens that do not simply follow each other, such as those of several threads of one row.

        Args:
            ids: int64 ``(rows, time)``.
            laid_out: their positions and what they see, None for one after the other.

        Returns:
            Logits behind each of them ``(rows, time, vocab)``.
        """
        logits = self._pass(ids.to(self.model.device), None, laid_out)
        self._grow(ids.shape[1])
        self.logits = logits[:, -1]
        return logits

    @torch.inference_mode()
    def append_drafted(self, ids: Tensor, drafts: Sequence[Draft]) -> None:
        """Append one token to every row, and read a draft behind it in the same pass; see `follow`.

        Args:
            ids: int64 ``(rows,)``.
            drafts: one for each row, empty for none.
        """
        time = 1 + max(map(len, drafts))
        if time == 1:
            self.append(ids)
            return
        device = self.model.device
        inputs = torch.zeros(len(ids), time, dtype=torch.int64)
        for row, draft in enumerate(drafts):
            inputs[row, 1 : len(draft) + 1] = torch.tensor(draft.tokens, dtype=torch.int64)
        inputs[:, 0] = ids
        depths, visible = layout(drafts, time, device)
        seen: dict[int, Tensor] = {}
        laid_out = Layout(self.held.positions(self._lengths)[:, None] + depths, visible)
        logits = self._pass(inputs.to(device), None, laid_out, newest=True, seen=seen)
        states = dict(self._tapped or {})
        self._grow(1)
        self.logits = logits[:, 0]
        self.hidden = {layer: found[:, 0] for layer, found in states.items()}
        self.walks = [
            Walk(draft, self.lengths[row] - 1, logits[row], _of_row(states, row), _of_row(seen, row)) if draft else None
            for row, draft in enumerate(drafts)
        ]
        self._settle(range(len(self)))

    @torch.inference_mode()
    def follow(self, rows: Sequence[int], tokens: Sequence[Sequence[int]]) -> list[int]:
        """Append tokens to some rows as far as their drafts hold them, which takes no pass.

        Args:
            rows: which, each once.
            tokens: of each; under a policy one at the most.

        Returns:
            How many tokens each row went on. A draft that does not hold the next one is forgotten.
        """
        went: list[int] = []
        moved: list[tuple[int, int, int]] = []
        ends: dict[int, Walk] = {}
        for row, path in zip(rows, tokens, strict=True):
            first = len(moved)
            for token in path:
                walk = self.walks[row]
                node = walk.child(token) if walk else None
                if walk is None or node is None:
                    self.walks[row] = None
                    break
                moved.append((row, walk.base + 1 + node, self.lengths[row]))
                walk.node, walk.steps, ends[row] = node, walk.steps + 1, walk
                self.lengths[row] += 1
            went.append(len(moved) - first)
        if not moved:
            return went
        # the first nodes of a draft that starts with a chain stand where they belong
        away = [(row, source, target) for row, source, target in moved if source != target]
        if away:
            # what is overwritten stands before the row's node, and nothing that may still follow does
            self.cache.copy(*torch.tensor(away, dtype=torch.int64, device=self.model.device).unbind(1))
        places = torch.tensor(list(ends), dtype=torch.int64, device=self.model.device)
        self._lengths = self._lengths.new_tensor(self.lengths)
        reached = torch.stack([walk.logits[walk.node + 1] for walk in ends.values()])
        self.logits = self.logits.index_copy(0, places, reached)
        for layer, states in self.hidden.items():
            reached = torch.stack([walk.states[layer][walk.node + 1] for walk in ends.values()])
            self.hidden[layer] = states.index_copy(0, places, reached)
        self._settle(ends, self.walks)
        return went

    @torch.inference_mode()
    def append_embeddings(self, embeddings: Tensor) -> None:
        """Append one position to every row, given as a vector instead of a token.

        Args:
            embeddings: ``(rows, hidden)``, in the model's dtype.
        """
        self.logits = self._pass(embeddings[:, None], None, newest=True)[:, -1]
        self._grow(1)
        self._settle(range(len(self)))

    @torch.inference_mode()
    def fork(self, rows: Sequence[int], room: int = 32) -> Self:
        """Return a session of copies of some rows, frozen; what happens there does not touch this one.

        Args:
            rows: which; a row may be named several times.
            room: positions that the copies are expected to grow by.
        """
        copy = type(self)(self.model, self.policy)
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.model.device)
        copy.lengths = [self.lengths[r] for r in rows]
        copy.walks = [None] * len(copy.lengths)
        copy.cache = copy.held.cache = self.cache.select(index, max(copy.lengths), room)
        copy.held.adopt(self.held, rows)
        copy.held.frozen = True
        copy._lengths = self._lengths[index]
        copy.logits = self.logits[index]
        copy.hidden = {layer: states[index] for layer, states in self.hidden.items()}
        return copy

    @torch.inference_mode()
    def rewind(self, row: int, count: int) -> None:
        """Forget the last positions of a row. Its logits are stale until tokens are appended to it.

        Args:
            row: which.
            count: positions to forget; at least one must stay.
        """
        if not 0 <= count < self.lengths[row]:
            raise ValueError(f"cannot rewind {count} of {self.lengths[row]} positions")
        if not self.held.rows[row].reaches(self.positions[row] - count):
            raise ValueError(f"cannot rewind {count} positions: entries were evicted since then")
        self.lengths[row] -= count
        self._lengths[row] -= count
        self.walks[row] = None

    @torch.inference_mode()
    def drop(self, rows: Sequence[int]) -> list[int]:
        """Remove rows and give their room back; the last rows move into the gaps.

        Returns:
            For each remaining row, in its new order, the index it had before.
        """
        gone = set(rows)
        kept = len(self) - len(gone)
        order = list(range(kept))
        movers = [r for r in range(kept, len(self)) if r not in gone]
        for gap in sorted(r for r in gone if r < kept):
            order[gap] = movers.pop()
            self.cache.move(order[gap], gap, self.lengths[order[gap]])
        self.lengths = [self.lengths[r] for r in order]
        self.held.rows = [self.held.rows[r] for r in order]
        # what moved left its drafts behind
        self.walks = [self.walks[r] if r == i else None for i, r in enumerate(order)]
        index = torch.tensor(order, dtype=torch.int64, device=self.model.device)
        self._lengths = self._lengths[index]
        self.logits = self.logits[index]
        self.hidden = {layer: states[index] for layer, states in self.hidden.items()}
        return order

    @torch.inference_mode()
    def adopt(self, other: Session) -> None:
        """Add copies of all rows of another session of the same model behind the present ones."""
        first, total = len(self), len(self) + len(other)
        self.cache.reserve(total, max([*self.lengths, *other.lengths]))
        for source, length in enumerate(other.lengths):
            self.cache.put(first + source, other.cache, source, length)
        self.lengths += other.lengths
        self.held.adopt(other.held)
        self.walks += [None] * len(other)
        self._lengths = torch.cat([self._lengths, other._lengths])
        self.logits = torch.cat([self.logits, other.logits])
        self.hidden = {
            layer: torch.cat(
                [_states(self.hidden.get(layer), first, states), _states(other.hidden.get(layer), len(other), states)]
            )
            for layer, states in {**self.hidden, **other.hidden}.items()
        }

    @torch.inference_mode()
    def put(self, row: int, other: Session) -> None:
        """Overwrite a row with the only row of another session of the same model."""
        (length,) = other.lengths
        self.cache.reserve(len(self), length)
        self.cache.put(row, other.cache, 0, length)
        self.lengths[row] = length
        self.held.rows[row] = replace(other.held.rows[0])
        self.walks[row] = None
        self._lengths, self.logits = self._lengths.clone(), self.logits.clone()
        self._lengths[row], self.logits[row] = length, other.logits[0]
        for layer, states in self.hidden.items():
            if layer in other.hidden:
                states[row] = other.hidden[layer][0]

    @contextmanager
    def tap(self, layers: Sequence[int]) -> Iterator[None]:
        """Keep `hidden` up to date for some layers while the context is open (see `TorchModel.tap`)."""
        with self.model.tap(layers) as self._tapped:
            try:
                yield
            finally:
                self._tapped = None

    def _forget_drafts(self) -> None:
        self.walks = [None] * len(self.lengths)

    def _grow(self, count: int) -> None:
        self._forget_drafts()
        self.lengths = [n + count for n in self.lengths]
        self._lengths = self._lengths + count
        tapped = self._tapped or {}
        self.hidden = {layer: states[:, -1] for layer, states in tapped.items()}

    def _settle(self, rows: Iterable[int], walks: Sequence[Walk | None] = ()) -> None:
        if self.held.settle(self.lengths, rows, walks):
            self._lengths = self._lengths.new_tensor(self.lengths)

    def _pass(
        self,
        inputs: Tensor,
        keep: Tensor | None,
        laid_out: Layout | None = None,
        newest: bool = False,
        counts: Tensor | None = None,
        seen: dict[int, Tensor] | None = None,
        places: Sequence[int] | None = None,
    ) -> Tensor:
        """Run the model on some rows, None for all; the lengths are left to the caller."""
        places = range(len(self)) if places is None else places
        lengths = [self.lengths[row] for row in places]
        longest = max(lengths)
        equal = min(lengths) == longest
        some = slice(None) if len(places) == len(self) else torch.tensor(places, device=self._lengths.device)
        device_lengths = self._lengths[some]
        self.forward_passes += 1
        with self.held.aim(places, lengths, device_lengths, inputs.shape[1], newest, laid_out, counts, seen):
            logits = self.model.forward(self.cache, inputs, device_lengths, longest, equal, keep, laid_out)
        return logits.to(self._working_dtype)

    def _advance(self, places: Sequence[int], ids: Sequence[Sequence[int]], newest: bool = False) -> Tensor:
        """Append ragged tokens to some rows, ascending; return logits at their last tokens."""
        counts = [len(row) for row in ids]
        time = max(counts)
        padded = [[*row, *[0] * (time - len(row))] for row in ids]
        inputs = torch.tensor(padded, dtype=torch.int64, device=self.model.device)
        last = [max(c - 1, 0) for c in counts]
        kept = sorted(set(last))  # the vocabulary projection is spent on positions that end a row only
        keep = torch.tensor(kept, dtype=torch.int64, device=inputs.device)
        taken = torch.tensor(counts, device=inputs.device)
        logits = self._pass(inputs, keep, newest=newest, counts=taken, places=places)
        place = torch.tensor([kept.index(i) for i in last], device=inputs.device)
        rows, index = torch.tensor(places, device=inputs.device), torch.arange(len(ids), device=inputs.device)
        for row, count in zip(places, counts, strict=True):
            self.lengths[row] += count
        self._lengths = self._lengths.index_add(0, rows, taken)
        old, self.hidden = self.hidden, {}
        if self._tapped is not None:
            ends = torch.tensor(last, device=inputs.device)
            moved = taken > 0
            for layer, tapped in self._tapped.items():
                states = tapped[index, ends]
                # a row without new tokens keeps its state
                before = _states(old.get(layer), len(self), states)
                self.hidden[layer] = before.index_copy(0, rows[moved], states[moved])
        return logits[index, place]


def _of_row(found: dict[int, Tensor], row: int) -> dict[int, Tensor]:
    return {layer: tensor[row] for layer, tensor in found.items()}


def _states(known: Tensor | None, rows: int, like: Tensor) -> Tensor:
    """Return states ``(rows, hidden)``: those known, then NaN for rows that were not tapped."""
    known = like[:0] if known is None else known
    return torch.cat([known, like.new_full((rows - len(known), like.shape[1]), torch.nan)])
