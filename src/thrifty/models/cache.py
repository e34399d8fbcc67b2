"""The key-value cache of a batch of ragged rows: the one file that touches the Hugging Face cache.

Hugging Face's `DynamicCache` grows by concatenation: every step copies all keys and values of all rows.
`RowCache` keeps them in buffers with room ahead. Each row has its own length and is contiguous from
column 0, so that appending, rewinding and dropping touch only that row, and no row attends to a hole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

COLUMN_STEP = 64
"""Buffers grow to a multiple of this many columns, and by at least half."""


class _Plan:
    """Where the next forward pass writes and how far it reads; shared by all layers."""

    __slots__ = ("columns", "evicted", "flat", "marks", "rows", "start")

    def __init__(self) -> None:
        self.columns = 0
        self.rows: slice | Tensor = slice(0, 0)
        self.start: int | None = None
        self.flat: Tensor | None = None
        self.evicted: Tensor | None = None
        self.marks: Tensor | None = None


class RowLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers' annotations are not read
    """Keys and values of one layer: buffers ``(rows, heads, columns, head_dim)``.

    Args:
        plan: where passes write and read.
        marks: numbers that a policy notes beside every entry, in a buffer ``(rows, heads, columns, marks)``; 0 for
            no such buffer.
    """

    is_sliding = False

    def __init__(self, plan: _Plan, marks: int = 0) -> None:
        super().__init__()
        self.plan = plan
        self.rows = self.columns = 0
        self.mark_count = marks
        self.names = ("keys", "values", "marks") if marks else ("keys", "values")

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shapes = [(self.rows, t.shape[1], self.columns, t.shape[3]) for t in (key_states, value_states)]
        self.keys = key_states.new_zeros(shapes[0])
        self.values = value_states.new_zeros(shapes[1])
        if self.mark_count:
            dtype = torch.promote_types(key_states.dtype, torch.float32)
            self.marks = key_states.new_zeros(*shapes[0][:3], self.mark_count, dtype=dtype)
        self.is_initialized = True

    def reserve(self, rows: int, columns: int) -> None:
        """Make room; what is stored stays. New room is zeroed, for masked positions must stay finite."""
        self.rows, self.columns = max(rows, self.rows), max(columns, self.columns)
        if not self.is_initialized:
            return
        for name in self.names:
            old = getattr(self, name)
            if old.shape[0] < self.rows or old.shape[2] < self.columns:
                new = old.new_zeros(self.rows, old.shape[1], self.columns, old.shape[3])
                new[: old.shape[0], :, : old.shape[2]] = old
                setattr(self, name, new)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values ``(rows, heads, time, head_dim)`` as planned; return all that rows may read."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan = self.plan
        stored = [(self.keys, key_states), (self.values, value_states)]
        if plan.marks is not None:
            stored.append((self.marks, plan.marks[:, None].expand(-1, key_states.shape[1], -1, -1)))
        if plan.start is not None:
            end = plan.start + key_states.shape[2]
            for buffer, states in stored:
                buffer[plan.rows, :, plan.start : end] = states
        else:
            assert plan.flat is not None
            for buffer, states in stored:
                # (rows, time, heads) positions of vectors in the flattened buffer
                index = plan.flat[:, :, None] + torch.arange(buffer.shape[1], device=buffer.device) * buffer.shape[2]
                vectors = states.transpose(1, 2).reshape(-1, states.shape[3])
                buffer.view(-1, buffer.shape[3]).index_copy_(0, index.reshape(-1), vectors)
        return self.keys[plan.rows, :, : plan.columns], self.values[plan.rows, :, : plan.columns]

    def seen_marks(self) -> Tensor:
        """Return what is noted beside the entries that the present pass may read ``(rows, heads, columns, marks)``."""
        return self.marks[self.plan.rows, :, : self.plan.columns]

    def marks_of(self, rows: Tensor, length: int) -> Tensor:
        """Return what is noted beside the first ``length`` entries of some rows ``(rows, heads, length, marks)``."""
        if self.mark_count:
            return self.marks[rows, :, :length]
        return self.keys.new_zeros(len(rows), self.keys.shape[1], length, 0)

    def pages(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return copies of some pages of the rows of the present pass.

        Args:
            index: from `RowCache.page_index`.
            size: columns of a page.

        Returns:
            Keys and values ``(rows, heads, pages * size, head_dim)``.
        """
        keys, values = (
            buffer.view(-1, size * buffer.shape[3])
            .index_select(0, index.reshape(-1))
            .view(*index.shape[:2], -1, buffer.shape[3])
            for buffer in (self.keys, self.values)
        )
        return keys, values

    def keep(self, rows: Tensor, index: Tensor) -> None:
        """Keep some entries of some rows, moved together from column 0 on, and forget the others.

        Args:
            rows: which, int64 ``(n,)``.
            index: columns of the entries of each row and head, ascending, int64 ``(n, heads, kept)``.
        """
        heads = torch.arange(index.shape[1], device=index.device)[:, None]
        for name in self.names:
            buffer = getattr(self, name)
            buffer[rows, :, : index.shape[2]] = buffer[rows[:, None, None], heads, index]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.plan.columns, 0

    def get_seq_length(self) -> int:
        return self.plan.columns

    def get_max_length(self) -> int:
        return -1


class RowCache(Cache):  # type: ignore[misc]  # as above
    """A cache of ragged rows for any Hugging Face decoder whose layers attend to keys and values.

    Args:
        layers: number of decoder layers.
        marks: see `RowLayer`.
    """

    def __init__(self, layers: int, marks: int = 0) -> None:
        self.plan = _Plan()
        super().__init__(layers=[RowLayer(self.plan, marks) for _ in range(layers)])

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for ``rows`` rows of ``columns`` positions."""
        first = self.layers[0]
        if columns > first.columns:
            columns = -(-max(columns, first.columns * 3 // 2) // COLUMN_STEP) * COLUMN_STEP
        if rows > first.rows or columns > first.columns:
            for layer in self.layers:
                layer.reserve(rows, columns)

    def aim(
        self,
        places: Sequence[int],
        lengths: Tensor,
        time: int,
        longest: int,
        equal: bool,
        evicted: Tensor | None = None,
        marks: Tensor | None = None,
    ) -> None:
        """Say where the next forward pass writes: ``time`` positions behind each row's length.

        Args:
            places: rows of the pass, ascending.
            lengths: positions stored for each of them, int64 ``(rows,)``.
            time: positions that the pass adds to each, padding counted.
            longest: the largest of the lengths.
            equal: whether all lengths are equal, which allows a plain copy.
            evicted: positions of each row that are no longer stored, int64 ``(rows,)``; None for none.
            marks: what to note beside the new entries ``(rows, time, marks)``, None without marks.
        """
        plan = self.plan
        plan.evicted, plan.marks = evicted, marks
        first, last = places[0], places[-1] + 1
        self.reserve(last, longest + time)
        together = last - first == len(places)  # such rows are read where they lie, others are copied for the pass
        plan.rows = slice(first, last) if together else torch.tensor(places, device=lengths.device)
        plan.columns = longest + time
        plan.start = longest if equal else None
        if not equal:
            # rows differ in length only once something is stored
            _, heads, columns, _ = self.layers[0].keys.shape
            base = torch.tensor(places, device=lengths.device) * (heads * columns) + lengths
            plan.flat = base[:, None] + torch.arange(time, device=lengths.device)

    def move(self, source: int, target: int, length: int) -> None:
        """Overwrite row ``target`` with the first ``length`` positions of row ``source``."""
        for layer in self.layers:
            for name in layer.names if layer.is_initialized else ():
                buffer = getattr(layer, name)
                buffer[target, :, :length] = buffer[source, :, :length]

    def copy(self, rows: Tensor, sources: Tensor, targets: Tensor) -> None:
        """Overwrite some positions by others of the same row.

        Args:
            rows: of each pair, int64 ``(n,)``.
            sources: columns to read, int64 ``(n,)``; all are read before any is written.
            targets: columns to write, int64 ``(n,)``.
        """
        for layer in self.layers:
            for name in layer.names:
                buffer = getattr(layer, name)
                buffer[rows, :, targets] = buffer[rows, :, sources]

    def page_index(self, pages: Tensor, size: int) -> Tensor:
        """Return where pages of the rows of the present pass lie, the same in every layer; see `RowLayer.pages`.

        Args:
            pages: numbers of pages, int64 ``(rows, n)``; those beyond the stored ones give whatever lies there.
            size: columns of a page, a divisor of `COLUMN_STEP`.

        Returns:
            int64 ``(rows, heads, n)``.
        """
        _, heads, columns, _ = self.layers[0].keys.shape
        count = columns // size
        rows = self.plan.rows
        assert isinstance(rows, slice), "pages are read of rows that follow each other"
        owners = torch.arange(rows.start * heads, rows.stop * heads, device=pages.device).view(-1, heads, 1)
        index: Tensor = owners * count + pages.clamp(max=count - 1)[:, None]
        return index

    def select(self, rows: Tensor, columns: int, room: int) -> RowCache:
        """Return a new cache that holds copies of some rows.

        Args:
            rows: which, int64 ``(n,)``.
            columns: positions to copy, from 0.
            room: further positions to make room for.
        """
        copy = RowCache(len(self.layers), self.layers[0].mark_count)
        copy.reserve(rows.shape[0], columns + room)
        for mine, theirs in zip(self.layers, copy.layers, strict=True):
            if mine.is_initialized:
                theirs.lazy_initialization(mine.keys, mine.values)
                for name in mine.names:
                    buffer = getattr(mine, name)
                    getattr(theirs, name)[:, :, :columns] = buffer[:, :, :columns].index_select(0, rows)
        return copy

    def put(self, row: int, other: RowCache, source: int, length: int) -> None:
        """Overwrite a row with the first ``length`` positions of a row of another cache.

        Args:
            row: which of this cache; there must be room for it.
            other: of the same model.
            source: which of the other cache.
            length: positions to copy.
        """
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if not mine.is_initialized:
                mine.lazy_initialization(theirs.keys, theirs.values)
            for name in mine.names:
                # what was stored without marks is marked as a prompt is
                states = getattr(theirs, name)[source, :, :length] if name in theirs.names else 0
                getattr(mine, name)[row, :, :length] = states
