"""Events of one response between the engine that writes them and the client that reads them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from thrifty.serve.engine import Event, Piece
from thrifty.serve.errors import Refusal


class Inbox:
    """Events in order, read on the event loop; see `thrifty.serve.engine.Stream`."""

    def __init__(self) -> None:
        self._events: deque[Event | Refusal] = deque()
        self._news = asyncio.Event()
        self._over = False

    def put(self, event: Event | Refusal) -> None:
        """Take an event, on the event loop; a `Refusal` is raised to the reader."""
        self._events.append(event)
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while not self._over:
            while not self._events:
                self._news.clear()
                await self._news.wait()
            event = self._events.popleft()
            # a reader that lags gets what has come meanwhile at once
            while (
                isinstance(event, Piece)
                and self._events
                and isinstance(following := self._events[0], Piece)
                and following.channel == event.channel
            ):
                event = _joined(event, following)
                self._events.popleft()
            self._over = not isinstance(event, Piece)
            if isinstance(event, Refusal):
                raise event
            yield event


def _joined(first: Piece, second: Piece) -> Piece:
    logprobs = (*first.logprobs, *second.logprobs)
    return Piece(first.channel, first.text + second.text, first.tokens + second.tokens, logprobs)
