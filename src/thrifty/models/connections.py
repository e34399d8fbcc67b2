"""Connections to one model server, kept open between requests."""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import cache
from urllib.request import getproxies, proxy_bypass

import httpx

KEPT_SECONDS = 30.0
"""For how long a connection stays open that nobody uses; many servers close theirs soon after."""


class Connections:
    """Connections to one server, the one used last is used next.

    They are httpx's transports alone: its client would carry the cookies of one caller's answer to the next caller,
    and its pool compares all connections with each other for each request, so each connection has a pool to itself.

    Args:
        address: of the server.
    """

    def __init__(self, address: httpx.URL) -> None:
        self._proxy = _proxy(address)
        self._idle: deque[tuple[float, httpx.AsyncHTTPTransport]] = deque()
        self._busy: set[httpx.AsyncHTTPTransport] = set()

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request; closing what is returned frees its connection.

        Raises:
            httpx.RequestError: it cannot be sent, or there is no answer.
        """
        transport = self._idle.pop()[1] if self._idle else self._new()
        self._busy.add(transport)
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            self._release(transport)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream), "asked by a coroutine"
        response.stream = _Lent(response.stream, lambda: self._release(transport))
        while self._idle and self._idle[0][0] < time.monotonic() - KEPT_SECONDS:
            await self._idle.popleft()[1].aclose()
        return response

    async def aclose(self) -> None:
        """Close all of them."""
        for transport in (*self._busy, *(transport for _, transport in self._idle)):
            await transport.aclose()
        self._idle.clear()

    def _new(self) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(keepalive_expiry=KEPT_SECONDS)
        return httpx.AsyncHTTPTransport(verify=_certificates(), limits=limits, proxy=self._proxy)

    def _release(self, transport: httpx.AsyncHTTPTransport) -> None:
        if transport in self._busy:
            self._busy.discard(transport)
            self._idle.append((time.monotonic(), transport))


class _Lent(httpx.AsyncByteStream):
    """The body of an answer, whose connection is free once it is closed."""

    def __init__(self, stream: httpx.AsyncByteStream, release: Callable[[], None]) -> None:
        self._stream, self._release = stream, release

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._release()


@cache
def _certificates() -> ssl.SSLContext:
    """Load the certificates once: it takes longer than everything else in connecting."""
    return httpx.create_ssl_context()


def _proxy(address: httpx.URL) -> str | None:
    """Return the proxy that the environment names for a server, None for none."""
    if proxy_bypass(address.netloc.decode("ascii")):
        return None
    proxies = getproxies()
    found = proxies.get(address.scheme) or proxies.get("all")
    return found if found is None or "://" in found else f"http://{found}"
