"""Sending an answer: whole or as it comes, and nothing more once the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thrifty.serve.answering import Answering
from thrifty.serve.engine import Done
from thrifty.serve.errors import Refusal
from thrifty.serve.guard import Receive, Scope, Send, refuse
from thrifty.serve.shapes import Shape, encoded
from thrifty.serve.visits import CLIENT_GONE


class Telling:
    """A response to be sent, as an ASGI application.

    Args:
        answering: what is being answered.
        shape: in which form.
        stream: whether as it comes.
        id: of the request, for its header.
        usage: returns the account, once all responses are complete.
        ended: called when it is over, however it went.
        headers: further ones.
    """

    def __init__(
        self,
        answering: Answering,
        shape: Shape,
        stream: bool,
        id: str,
        usage: Callable[[], Mapping[str, Any]],
        ended: Callable[[], None],
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._answering, self._shape, self._stream = answering, shape, stream
        self._headers = [(b"x-request-id", id.encode()), *headers]
        self._usage, self._ended = usage, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(until_gone(receive))
        telling = asyncio.ensure_future(self._tell(scope, send) if self._stream else self._tell_whole(scope, send))
        try:
            await asyncio.wait({gone, telling}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        finally:
            gone.cancel()
            self._answering.cancel()  # also what is left where one of several responses has failed
            if not telling.done():
                scope["state"]["visit"].status = CLIENT_GONE
                telling.cancel()
            try:
                self._ended()
            finally:
                await asyncio.wait({telling})
                await self._answering.settle()

    async def _tell_whole(self, scope: Scope, send: Send) -> None:
        try:
            answers = await self._answering.collect()
        except Refusal as error:
            await refuse(scope, send, error, extra=self._headers)
            return
        body = encoded(self._shape.whole(answers, self._usage()))
        await self._start(send, b"application/json", [(b"content-length", b"%d" % len(body))])
        await send({"type": "http.response.body", "body": body})

    async def _tell(self, scope: Scope, send: Send) -> None:
        answers, shape = self._answering.answers, self._shape
        await self._start(send, b"text/event-stream; charset=utf-8", [(b"x-accel-buffering", b"no")])
        await _more(send, shape.begin(len(answers)))
        missing = len(answers)
        try:
            async for index, event in self._answering.events():
                missing -= isinstance(event, Done)
                if missing:
                    await _more(send, shape.event(index, event))
                else:
                    await _more(send, shape.end(index, answers, self._usage()))
        except Refusal as error:
            visit = scope["state"]["visit"]
            visit.status, visit.code = error.status, error.code or error.kind
            await _more(send, shape.fail(error))
        await send({"type": "http.response.body", "body": b""})

    async def _start(self, send: Send, kind: bytes, more: list[tuple[bytes, bytes]]) -> None:
        headers = [(b"content-type", kind), (b"cache-control", b"no-store"), *self._headers, *more]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _more(send: Send, body: bytes) -> None:
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def until_gone(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
