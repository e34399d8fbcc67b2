"""Threads: several streams of one model that think about one problem at the same time and may read each other.

All threads of a problem live in one row of a session. A step writes a token to each of them and reads these in one
pass, each at a position of its thread's own slot, under a mask that says who sees what. The prompt is stored once, and
a step takes about as long as for one stream, where the machine has arithmetic to spare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thrifty.decoding.limits import LOOP_CHECK_EVERY
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import Sampler
from thrifty.decoding.session import Session
from thrifty.models.torch import Layout, TorchModel
from thrifty.traces.repetition import repeats
from thrifty.traces.trace import Usage


def sees(threads: Tensor, steps: Tensor, shared: bool = True, interleaved: bool = False) -> Tensor:
    """Return which tokens of some threads attend to which, themselves included.

    Of two threads that wrote a1 b1 a2 b2, the token a2 sees a1 b1 a2 and b2 sees a1 b1 b2; interleaved, b2 sees a2
    too; not shared, a2 sees a1 a2.

    Args:
        threads: whose token each is, int64 ``(..., tokens)``.
        steps: when it was written, likewise.
        shared: whether threads see each other's tokens of earlier steps.
        interleaved: whether they also see those of the same step by threads before their own.

    Returns:
        Bool ``(..., tokens, tokens)``: the second of a pair is seen by the first.
    """
    mine, theirs = threads[..., :, None], threads[..., None, :]
    now, then = steps[..., :, None], steps[..., None, :]
    visible = (mine == theirs) & (then <= now)
    if shared:
        visible |= then < now
    if shared and interleaved:
        visible |= (then == now) & (theirs < mine)
    return visible


class Spot(NamedTuple):
    """A token of a group: its thread, where it stands there, and when it is written among those read with it."""

    thread: int
    at: int
    step: int


@dataclass(eq=False)
class Group:
    """The threads of one problem.

    Attributes:
        threads: rows with one prompt; what they hold when they enter are their headers.
        room: tokens that each of them may write behind its header, at least one.
        slot: positions from the beginning of one thread to that of the next.
        steps: tokens that the longest thread has written.
        usage: passes and operations of the group as a whole.
        kept: for a single thread that has stopped, a session of it alone, its newest token included.
    """

    threads: list[Row]
    room: int
    slot: int
    steps: int = 0
    usage: Usage = field(default_factory=Usage)
    kept: Session | None = None
    headers: list[int] = field(init=False)
    logits: Tensor = field(init=False)
    owners: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.headers = [len(row.ids) for row in self.threads]

    @property
    def prompt(self) -> list[int]:
        """The prompt that the threads share."""
        return self.threads[0].prompt_ids

    @property
    def working(self) -> list[int]:
        """The threads that have not stopped."""
        return [n for n, row in enumerate(self.threads) if not row.stopped]

    def position(self, spot: Spot) -> int:
        """Return where a token stands: thread n from 0 begins n slots behind the prompt's end."""
        return len(self.prompt) + spot.thread * self.slot + spot.at


class ThreadPool:
    """Groups of threads that are decoded together; no group sees another.

    A thread stops with its thinking (``closed``), its response (``eos``), its room (``limit``), or in a repetition
    (``loop``). Its tokens stay visible, and nothing is appended to it any more.

    Args:
        model: which decodes; its layers must all see everything, for slots stand far apart.
        shared: whether the threads of a group see each other.
        interleaved: whether they see tokens of the same step; see `sees`.
        first_ends: whether a thread that has come to an end of its own ends the others (``done``).
    """

    def __init__(
        self, model: TorchModel, shared: bool = True, interleaved: bool = False, first_ends: bool = False
    ) -> None:
        self.model, self.shared, self.interleaved, self.first_ends = model, shared, interleaved, first_ends
        self.session = Session(model)
        self.groups: list[Group] = []

    @torch.inference_mode()
    def admit(self, groups: Sequence[Group]) -> None:
        """Read the prompts and headers of new groups.

        Raises:
            ContextOverflow: a prompt leaves no room in the model's context.
        """
        entering = Session(self.model)
        entering.add([group.prompt for group in groups])
        behind_prompt = entering.logits
        for group in groups:
            group.usage.forward_passes += 1
            group.usage.flops += self.model.flops(len(group.prompt), 0)
        spots = [[Spot(n, k, k) for n, length in enumerate(g.headers) for k in range(length)] for g in groups]
        behind_headers = self._read(entering, groups, spots) if any(spots) else None
        for i, group in enumerate(groups):
            ends = {spot.thread: place for place, spot in enumerate(spots[i])}
            found = [behind_prompt[i]] * len(group.threads)
            if behind_headers is not None:
                found = [behind_headers[i, ends[n]] if n in ends else logits for n, logits in enumerate(found)]
            group.logits = torch.stack(found)
        self.session.adopt(entering)
        self.groups += groups

    @torch.inference_mode()
    def step(self) -> list[Group]:
        """Write a token to every thread at work; return the groups that ended, gone now."""
        writing = [group.working for group in self.groups]
        rows = [group.threads[n] for group, threads in zip(self.groups, writing, strict=True) for n in threads]
        sampler = Sampler.of([row.settings for row in rows], self.model.device)
        keys = np.array([row.key for row in rows], dtype=np.uint64)
        counters = np.array([len(row.ids) for row in rows], dtype=np.uint64)
        logits = torch.cat([group.logits for group in self.groups])
        for row, token in zip(rows, sampler.choose(logits, keys, counters).tolist(), strict=True):
            row.record(token, forced=False)
        for group, threads in zip(self.groups, writing, strict=True):
            group.steps += 1
            self._stop(group, threads)
        spots = [
            [Spot(n, len(group.threads[n].ids) - 1, 0) for n in threads]
            for group, threads in zip(self.groups, writing, strict=True)
        ]
        gone = [i for i, group in enumerate(self.groups) if not group.working]
        ended = [self._keep(i) for i in gone]
        order = self.session.drop(gone)
        self.groups, spots = [self.groups[i] for i in order], [spots[i] for i in order]
        if self.groups:
            # threads that have just stopped are read as well, for the others to see
            logits = self._read(self.session, self.groups, spots)
            for i, (group, read) in enumerate(zip(self.groups, spots, strict=True)):
                places = [place for place, spot in enumerate(read) if not group.threads[spot.thread].stopped]
                group.logits = logits[i, places]
        return ended

    def _stop(self, group: Group, threads: Sequence[int]) -> None:
        """Stop those of some threads that have just written their last token."""
        for n in threads:
            row, written = group.threads[n], len(group.threads[n].ids)
            if row.ids[-1] in self.model.eos_ids:
                row.stop("eos")
            elif row.closed_by is not None:
                row.stop("closed")
            elif written - group.headers[n] >= group.room:
                row.stop("limit")
            elif row.settings.loop_stop and written % LOOP_CHECK_EVERY == 0 and repeats(row.ids):
                row.stop("loop")
        if self.first_ends and any(row.stopped in ("eos", "closed") for row in group.threads):
            for n in group.working:
                group.threads[n].stop("done")

    def _keep(self, place: int) -> Group:
        """Return a group that has ended; what a single thread has stored is what it would have stored alone."""
        group = self.groups[place]
        if len(group.threads) == 1:
            (row,) = group.threads
            group.kept = self.session.fork([place], 1)
            group.kept.append(torch.tensor(row.ids[-1:], device=self.model.device))
            group.usage.forward_passes += 1
            group.usage.flops += self.model.flops(1, len(group.prompt) + len(row.ids) - 1)
        return group

    def _read(self, session: Session, groups: Sequence[Group], spots: Sequence[Sequence[Spot]]) -> Tensor:
        """Read tokens of all rows of a session in one pass.

        Args:
            session: whose rows are the groups.
            groups: in the order of the rows.
            spots: which tokens of each.

        Returns:
            Logits behind each of them ``(rows, time, vocab)``; what a row has fewer of is padding at the end.
        """
        time = max(map(len, spots))
        # threads, positions, steps and ids; padding is of no thread and written last, so that no token sees it
        table = torch.tensor([-1, 0, time, 0]).repeat(len(groups), time, 1)
        for i, (group, row_spots) in enumerate(zip(groups, spots, strict=True)):
            values = [[s.thread, group.position(s), s.step, group.threads[s.thread].ids[s.at]] for s in row_spots]
            table[i, : len(values)] = torch.tensor(values, dtype=torch.int64).view(-1, 4)
        threads, positions, steps, ids = table.to(self.model.device).unbind(2)
        visible = sees(threads, steps, self.shared, self.interleaved)
        past = None if self.shared else self._past(session, groups, threads)
        before = list(session.lengths)
        logits = session.append_laid_out(ids, Layout(positions, visible, past))
        for i, (group, row_spots) in enumerate(zip(groups, spots, strict=True)):
            if len(row_spots) < time:
                session.rewind(i, time - len(row_spots))
            for spot in row_spots:
                known = before[i] if self.shared else len(group.prompt) + spot.at
                group.usage.flops += self.model.flops(1, known)
            group.owners += [spot.thread for spot in row_spots]
            group.usage.forward_passes += 1
        return logits

    def _past(self, session: Session, groups: Sequence[Group], threads: Tensor) -> Tensor:
        """Return which stored positions threads that do not share see: the prompt and their own."""
        owners = torch.full((len(groups), max(session.lengths)), -1)
        for i, group in enumerate(groups):
            start = len(group.prompt)
            owners[i, start : start + len(group.owners)] = torch.tensor(group.owners, dtype=torch.int64)
        theirs = owners.to(threads.device)[:, None]
        return (theirs < 0) | (theirs == threads[:, :, None])
