"""Events of one response between the engine that writes them and the client that reads them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import chain

from thrifty.serve.engine import Event, Piece
from thrifty.serve.errors import Refusal

_MOST_LOOSE = 1024
"""Pieces that nobody has read, before they are made one."""


class Inbox:
    """Events in order, read on the event loop; see `thrifty.serve.engine.Stream`."""

    def __init__(self) -> None:
        self._events: deque[Event | Refusal] = deque()
        self._news = asyncio.Event()
        self._loose = 0
        self._over = False

    def put(self, event: Event | Refusal) -> None:
        """Take an event, on the event loop; a `Refusal` is raised to the reader."""
        self._events.append(event)
        self._loose += 1
        if self._loose >= _MOST_LOOSE:  # of a reader that reads no more, only the text shall take room
            self._merge()
        self._news.set()

    def _merge(self) -> None:
        last = [self._events.pop() for _ in range(min(self._loose, len(self._events)))]
        while last:
            run = [last.pop()]
            while last and _alike(run[0], last[-1]):
                run.append(last.pop())
            self._events.append(_joined(run))
        self._loose = 0

    async def __aiter__(self) -> AsyncIterator[Event]:
        while not self._over:
            while not self._events:
                self._news.clear()
                await self._news.wait()
            # a reader that lags gets what has come meanwhile at once
            run = [self._events.popleft()]
            while self._events and _alike(run[0], self._events[0]):
                run.append(self._events.popleft())
            event = _joined(run)
            self._over = not isinstance(event, Piece)
            if isinstance(event, Refusal):
                raise event
            yield event


def _alike(first: Event | Refusal, second: Event | Refusal) -> bool:
    return isinstance(first, Piece) and isinstance(second, Piece) and first.channel == second.channel


def _joined(run: Sequence[Event | Refusal]) -> Event | Refusal:
    """Return pieces of one channel as one; anything else stands alone."""
    pieces = [event for event in run if isinstance(event, Piece)]
    if len(run) == 1 or not pieces:
        return run[0]
    logprobs = tuple(chain.from_iterable(piece.logprobs for piece in pieces))
    text = "".join(piece.text for piece in pieces)
    return Piece(pieces[0].channel, text, sum(piece.tokens for piece in pieces), logprobs)
