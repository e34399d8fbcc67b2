"""Many requests in one decode loop: each with its own method and settings, coming and going at every step.

Nothing here knows threads or clients: `Scheduler.step` is called again and again, and `Play.emit` is told what comes
of it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.flow import Wanted
from thrifty.decoding.loop import Entry, decode_steps
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import Composition, FlowMethod, attention_of, steering_controllers
from thrifty.models.torch import TorchModel
from thrifty.serve.engine import CANCELLED, TokenLogprob
from thrifty.serve.errors import Refusal, refusal
from thrifty.serve.play import Play
from thrifty.traces.trace import Trace

MOST_MADE = 64
"""Compositions whose controllers are kept for the next request with the same."""
LEAST_LOGPROB = -9999.0
"""Told for what has no probability at all: JSON knows no infinity."""

_LaneKey = tuple[int, str, int]
_log = logging.getLogger("thrifty.serve")


@dataclass(frozen=True)
class _Awaited:
    """A call at work: whose it is, its place in the flow, and the lane that decodes it."""

    play: Play
    place: int
    lane: _LaneKey


class _Watch(Controller):
    """Shows tokens as they are written."""

    def __init__(self, awaited: dict[int, _Awaited]) -> None:
        self._awaited = awaited

    def _play(self, row: Row) -> Play:
        return self._awaited[id(row.job)].play

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        wanting = [row for row in rows if self._play(row).order.logprobs is not None]
        found = dict(zip(map(id, wanting), self._logprobs(wanting, batch), strict=True))
        for row in rows:
            self._play(row).see(row, [found[id(row)]] if id(row) in found else [])

    def _logprobs(self, rows: Sequence[Row], batch: Batch) -> list[TokenLogprob]:
        if not rows:
            return []
        logprobs = torch.log_softmax(batch.logits(rows).double(), dim=-1)
        wanted = [self._play(row).order.logprobs or 0 for row in rows]
        values, ids = logprobs.topk(min(max(1, *wanted), logprobs.shape[-1]))
        told = []
        for row, count, its, likeliest, chances in zip(
            rows, wanted, logprobs, ids.tolist(), values.tolist(), strict=True
        ):
            spell, newest = row.model.texts.bytes_of, row.ids[-1]
            # a forced token may lie beyond the vocabulary that is predicted
            own = max(float(its[newest]), LEAST_LOGPROB) if newest < len(its) else LEAST_LOGPROB
            top = [(spell(i), max(p, LEAST_LOGPROB)) for i, p in zip(likeliest[:count], chances, strict=False)]
            told.append(TokenLogprob(spell(newest), own, tuple(top)))
        return told


class _Lane:
    """Rows that are decoded together: those of one model, under one policy of attention."""

    def __init__(self, model: TorchModel, composition: Composition | None, size: int) -> None:
        self.queue: deque[Entry] = deque()
        policy = attention_of(composition.parts, model) if composition else None
        self.steps = decode_steps(model, self._entries(), size, policy)

    def _entries(self) -> Iterator[Entry | None]:
        while True:
            yield self.queue.popleft() if self.queue else None


class Scheduler:
    """Requests that are decoded together.

    Args:
        model: the main model.
        size: rows decoded together.

    Attributes:
        plays: the requests at work.
    """

    def __init__(self, model: TorchModel, size: int) -> None:
        self.model, self.size = model, size
        self.plays: set[Play] = set()
        self._lanes: dict[_LaneKey, _Lane] = {}
        self._awaited: dict[int, _Awaited] = {}  # by the identity of the call's own job
        self._watch = _Watch(self._awaited)
        self._made: OrderedDict[str, list[Controller]] = OrderedDict()

    def start(self, play: Play) -> None:
        """Take a request in; its first token comes with the next step."""
        self.plays.add(play)
        self._go_on(play, lambda: play.begin(self.model, self._controllers(play), self._watch))

    def step(self) -> None:
        """Write a token to every row."""
        for play in [play for play in self.plays if play.cancelled or play.finishing]:
            self._heed(play)
        for key, lane in list(self._lanes.items()):
            try:
                finished = next(lane.steps)
            except Exception as error:
                self._break(key, error)
                return
            if finished is None:  # its cache is given back with it
                del self._lanes[key]
                continue
            for row in finished:
                self._take(row)

    def _heed(self, play: Play) -> None:
        """Do what was asked for of a request at work."""
        if play.cancelled:
            self._withdraw(play)
            return
        for row in play.rows.values():
            if row.thinking and row.stopped is None:
                row.close_thinking("finish")

    def _withdraw(self, play: Play) -> None:
        """Stop all rows of a request; those at work leave with the next step."""
        for row in play.rows.values():
            row.stop(CANCELLED)
        for lane in self._lanes.values():
            waiting = [entry for entry in lane.queue if id(entry.row) in play.rows]
            if waiting:
                lane.queue = deque(entry for entry in lane.queue if id(entry.row) not in play.rows)
            for entry in waiting:
                del play.rows[id(entry.row)], self._awaited[id(entry.row.job)]
        self._end_if_idle(play)

    def _end_if_idle(self, play: Play) -> None:
        if not play.rows:
            self.plays.discard(play)
            play.give_up()

    def _take(self, row: Row) -> None:
        awaited = self._awaited.pop(id(row.job))
        play = awaited.play
        del play.rows[id(row)]
        play.settle(row)
        if play.cancelled:
            self._end_if_idle(play)
        else:
            self._go_on(play, lambda: play.answer(awaited.place, row))

    def _go_on(self, play: Play, advance: Callable[[], list[Wanted] | Trace]) -> None:
        try:
            outcome = advance()
            if isinstance(outcome, Trace):
                play.conclude(outcome)
                self.plays.discard(play)
                return
            for wanted in outcome:
                self._enter(play, wanted)
        except Exception as error:
            self._drop(play, error)

    def _enter(self, play: Play, wanted: Wanted) -> None:
        order = play.order
        entry = Entry.of(wanted.model, wanted.job, wanted.plan, order.settings)
        if play.tight:
            entry.row.phases.final = True
        thinned = order.composition.thinned if wanted.model is self.model else ""
        key = (id(wanted.model), thinned, id(play) if play.alone else 0)
        if key not in self._lanes:
            self._lanes[key] = _Lane(wanted.model, order.composition if thinned else None, self.size)
        self._awaited[id(wanted.job)] = _Awaited(play, wanted.place, key)
        play.rows[id(entry.row)] = entry.row
        self._lanes[key].queue.append(entry)

    def _drop(self, play: Play, error: Exception) -> None:
        """End a request that failed; what is still decoded for it is withdrawn."""
        if not isinstance(error, ThriftyError):
            _log.error("a request failed with method %s", play.order.composition.spec, exc_info=error)
        play.fail(_told(error))
        play.cancelled = True
        self._withdraw(play)

    def _break(self, key: _LaneKey, error: Exception) -> None:
        """Give up a lane in which a step failed, which leaves its rows in no state to go on from.

        A request that was there alone has failed. Of several nobody knows which one it was: each is repeated in a
        lane of its own, and its client is told only what it does not know yet. One that is being decoded elsewhere
        as well is given up.
        """
        _log.error("a step failed", exc_info=error)
        del self._lanes[key]
        self._made.clear()
        broken = {job: awaited for job, awaited in self._awaited.items() if awaited.lane == key}
        for job in broken:
            del self._awaited[job]
        plays = list({id(awaited.play): awaited.play for awaited in broken.values()}.values())
        for play in plays:
            for row in [row for row in play.rows.values() if id(row.job) in broken]:
                play.lose(play.rows.pop(id(row)))
            if len(plays) == 1 or play.cancelled or play.rows:
                self._drop(play, error)
            else:
                play.alone = True
                self.start(play)

    def _controllers(self, play: Play) -> list[Controller] | None:
        """Return controllers that all requests with this composition share, so that they are steered together."""
        composition = play.order.composition
        if play.alone or any(isinstance(part, FlowMethod) for part in composition.parts):
            return None
        made = self._made.pop(composition.spec, None)
        if made is None:
            made = steering_controllers(composition.parts, self.model)
        self._made[composition.spec] = made
        if len(self._made) > MOST_MADE:
            self._made.popitem(last=False)
        return made


def _told(error: Exception) -> Refusal:
    if isinstance(error, ThriftyError):
        return refusal(error)
    return Refusal("the engine failed on this request: try again", 500, "engine_error")
