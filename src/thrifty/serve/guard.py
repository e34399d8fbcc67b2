"""The door: who may come in, and how much they may bring. Nothing is parsed before that is settled."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import ThriftyError
from thrifty.serve.errors import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz"})
"""What anybody may see."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
"""Where a server without keys may listen."""
_DISCARDED = 1 << 16
_LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}


@dataclass(frozen=True)
class Door:
    """What is let in.

    Attributes:
        keys: SHA-256 digests of the bearer keys, in hexadecimal; none for a server that only this machine reaches.
        max_body: bytes of the largest body.
        body_seconds: that a body may take to arrive.
    """

    keys: frozenset[str] = frozenset()
    max_body: int = 4 << 20
    body_seconds: float = 30.0


def read_keys(variable: str | None, file: Path | None) -> frozenset[str]:
    """Return the digests of the keys that let in.

    Args:
        variable: environment variable with keys, blanks or commas between them; None for none.
        file: with the SHA-256 of a key in hexadecimal on each line, perhaps a comment behind ``#``; None for none.

    Raises:
        ThriftyError: there is no key there.
    """
    found: set[str] = set()
    if variable is not None:
        keys = os.environ.get(variable, "").replace(",", " ").split()
        if not keys:
            raise ThriftyError(f"the environment variable {variable} holds no key: set it, or leave out --key-env")
        found.update(map(digest, keys))
    if file is not None:
        try:
            lines = [line.partition("#")[0].strip().lower() for line in file.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ThriftyError(f"cannot read the keys in {file}: {error}") from error
        for number, line in enumerate(lines, start=1):
            if line and not re.fullmatch(r"[0-9a-f]{64}", line):
                raise ThriftyError(
                    f"{file} line {number} is no SHA-256 of a key: write it with `printf %s KEY | sha256sum`"
                )
        found.update(filter(None, lines))
        if not found:
            raise ThriftyError(f"{file} holds no key: write one with `printf %s KEY | sha256sum >> {file}`")
    return frozenset(found)


def digest(key: str) -> str:
    """Return what stands for a key in a `Door`."""
    return hashlib.sha256(key.encode()).hexdigest()


class Guard:
    """Refuse strangers and what is too large, then hand the whole body on.

    ``scope["state"]["owner"]`` tells the application whose request it is: the digest of the key, or nothing.

    Args:
        app: the application.
        door: what is let in.
    """

    def __init__(self, app: App, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            owner = self._owner(scope["path"], headers)
            body = b"" if scope["method"] in ("GET", "HEAD") else await self._body(headers, receive)
        except Refusal as error:
            # what is still on its way is not read, unless it is so little that a new connection would cost more
            size = headers.get(b"content-length", b"0" if b"transfer-encoding" not in headers else b"")
            await refuse(send, error, close=not (size.isdigit() and int(size[:20]) <= _DISCARDED))
            return
        scope.setdefault("state", {})["owner"] = owner
        await self._app(scope, _replayed(body, receive), send)

    def _owner(self, path: str, headers: dict[bytes, bytes]) -> str:
        if path in OPEN_PATHS:
            return ""
        if not self._door.keys:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if name not in _LOOPBACK:  # a page in a browser may have a name of its own point here
                raise Refusal("this server takes requests for localhost only: it has no keys", 403, "forbidden_host")
            return ""
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        found = hashlib.sha256(key.strip()).hexdigest()
        # what is looked up is a digest, so that the time it takes says nothing about the keys
        if scheme.lower() != b"bearer" or found not in self._door.keys:
            raise Refusal(
                "the key is missing or unknown: send it as 'Authorization: Bearer KEY'", 401, "invalid_api_key"
            )
        return found

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        size = headers.get(b"content-length", b"")
        if size.isdigit() and int(size[:20]) > self._door.max_body:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._door.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal("the request broke off", 400)
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._door.max_body:
                        raise self._too_large()
        except TimeoutError:
            raise Refusal(f"the body took more than {self._door.body_seconds:g} s to arrive", 408) from None
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if body and kind != b"application/json":  # pages of other sites can send anything but that
            raise Refusal("send the body with 'Content-Type: application/json'", 415)
        return bytes(body)

    def _too_large(self) -> Refusal:
        return Refusal(f"the body has more than {self._door.max_body:,} bytes: shorten the request", 413)


async def refuse(send: Send, error: Refusal, close: bool = False, extra: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Send an error.

    Args:
        send: of the request.
        error: what to say.
        close: whether to close the connection.
        extra: further headers.
    """
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *extra]
    if close:
        headers.append((b"connection", b"close"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after))))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Refused:
    """An error as an ASGI application.

    Args:
        error: what to say.
    """

    def __init__(self, error: Refusal) -> None:
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(send, self._error)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return what gives the body as one message, and then what else comes: that the client is gone."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
