"""The process: the gateway on a socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from thrifty.errors import ThriftyError
from thrifty.serve.app import Gateway
from thrifty.serve.logs import flush

MOST_HEAD = 1 << 18
"""Bytes of a request beside its body: its headers, what stands between the pieces of the body and behind it."""
LAST_SECONDS = 5
"""That clients have to read the ends of what they asked for, once the server stops."""
HEAD_SECONDS = 30.0
"""That the headers of a request may take to arrive, and the rest of one that was answered before all of it came."""
STALLED_SECONDS = 60.0
"""That a client may take to read what is ready for it."""


class Together:
    """A transport that writes at once what is written in one turn of the loop.

    The head of a response, its body and several events are one call of the system then. Such a call holds the
    interpreter's lock, and so the engine up: with two for each, a thousand refusals a second took 21% of the tokens,
    with one 15% (benchmarks/load.py).

    Args:
        transport: that really writes, and does all else.
        loop: whose turns count.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def _flush(self) -> None:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._transport.write(b"".join(pieces))

    def close(self) -> None:
        self._flush()
        self._transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """HTTP in which a client can make nothing wait for ever, and nothing grow.

    Requests that come before the one before them is answered end the connection: a queue of them would have to be
    bounded, and hides whether the client is still there. Hardly any client sends such.
    """

    _in_head = True
    _head = 0
    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base has it
        super().connection_made(cast(asyncio.Transport, Together(transport, self.loop)))
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > MOST_HEAD:
            if self._in_head:
                self.send_400_response("The headers are too large.")
            else:
                self.transport.abort()
        elif self._timer is None and not self._at_work:
            self._wait_for_head()  # what came has stopped the timer that waits for the next request

    def on_message_begin(self) -> None:
        if self._at_work:
            self.transport.abort()
            raise ValueError("a request before the last one was answered")  # so that the rest is not parsed
        super().on_message_begin()
        self._in_head, self._head = True, 0
        self._wait_for_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what stands behind the body is not read
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._at_work:
            self._head -= len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._end_in_time()

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self._end_in_time()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_in_time()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    @property
    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self.transport.close()
        self._end_in_time()

    def _end_in_time(self) -> None:
        """See to it that a connection that is being closed does not wait for a client that no longer reads."""
        if self.transport.is_closing():
            self._stop_waiting()
            self._timer = self.loop.call_later(STALLED_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """The gateway on a socket.

    Args:
        gateway: what answers; its engine is closed with the server.
        host: where to listen.
        port: likewise, 0 for any that is free.
        graceful_seconds: that requests at work get when the server is told to stop; see `Gateway.stop`.
        ready: told the address once requests are taken.

    Raises:
        ThriftyError: nothing can listen there.
    """

    def __init__(
        self,
        gateway: Gateway,
        host: str = "127.0.0.1",
        port: int = 8000,
        graceful_seconds: float = 30.0,
        ready: Callable[[str], None] | None = None,
    ) -> None:
        self._gateway, self._ready, self._graceful_seconds = gateway, ready, graceful_seconds
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise ThriftyError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self._socket.getsockname()[1]}"
        super().__init__(
            uvicorn.Config(
                gateway.app,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=1024,
                timeout_graceful_shutdown=math.ceil(graceful_seconds) + LAST_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._ready is not None:
            self._ready(self.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.stop(self._graceful_seconds)
        try:
            await super().shutdown(sockets)
        finally:
            await self._gateway.engine.close()
            await asyncio.to_thread(flush)  # a signal ends the process right behind this

    def listen(self) -> None:
        """Serve until the process is told to stop."""
        self.run([self._socket])
