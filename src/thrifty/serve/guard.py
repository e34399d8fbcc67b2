"""The door: who may come in, and how much they may bring. Nothing is parsed before that is settled."""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thrifty.errors import ThriftyError
from thrifty.serve.errors import Refusal
from thrifty.serve.limits import Allowances, Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz"})
"""What anybody may see; nobody may send it anything, for a body of a stranger would be kept until it was complete."""
BROWSED_PATHS = frozenset({"/status", "/status.json"})
"""What a browser shows: it cannot send a bearer key, and so may send the key as a password. Nothing else takes one,
for browsers send passwords along with whatever pages of other sites ask them to."""
GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""What the limits of a key are about."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
"""Where a server without keys may listen."""
_WITHOUT_BODY = ("GET", "HEAD")
_DISCARDED = 1 << 17
_LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}


@dataclass(frozen=True)
class Door:
    """What is let in.

    Attributes:
        keys: the name of each bearer key, by its SHA-256 digest in hexadecimal; none for a server that only this
            machine reaches.
        max_body: bytes of the largest body.
        body_seconds: that a body may take to arrive.
        limits: what each key may ask for, or all requests together where there are no keys.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    max_body: int = 4 << 20
    body_seconds: float = 30.0
    limits: Limits = field(default_factory=Limits)


def read_keys(variable: str | None, file: Path | None) -> dict[str, str]:
    """Return the keys that let in: their names by their digests.

    Args:
        variable: environment variable with keys, blanks or commas between them; None for none. They are named after
            their digests.
        file: with the SHA-256 of a key in hexadecimal on each line, then perhaps its name, and perhaps a comment
            behind ``#``; None for none.

    Raises:
        ThriftyError: there is no key there.
    """
    found: dict[str, str] = {}
    if variable is not None:
        keys = os.environ.get(variable, "").replace(",", " ").split()
        if not keys:
            raise ThriftyError(f"the environment variable {variable} holds no key: set it, or leave out --key-env")
        found.update((digest(key), _named(digest(key))) for key in keys)
    if file is not None:
        try:
            lines = [line.partition("#")[0].split() for line in file.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ThriftyError(f"cannot read the keys in {file}: {error}") from error
        for number, line in enumerate(lines, start=1):
            if line and (len(line) > 2 or not re.fullmatch(r"[0-9a-fA-F]{64}", line[0])):
                raise ThriftyError(
                    f"{file} line {number} is no SHA-256 of a key: write it with `printf %s KEY | sha256sum`, and "
                    "perhaps a name in one word behind it"
                )
        named = {line[0].lower(): line[1] if len(line) > 1 else "-" for line in lines if line}
        if not named:
            raise ThriftyError(f"{file} holds no key: write one with `printf %s KEY | sha256sum >> {file}`")
        # sha256sum writes a dash where the name of a file would stand
        found.update((digest, _named(digest) if name == "-" else name) for digest, name in named.items())
    return found


def _named(digest: str) -> str:
    return f"key-{digest[:8]}"


def digest(key: str) -> str:
    """Return what stands for a key in a `Door`."""
    return hashlib.sha256(key.encode()).hexdigest()


class Guard:
    """Refuse strangers and what is too large, then hand the whole body on.

    ``scope["state"]["owner"]`` tells the application whose request it is: the digest of the key, or nothing;
    ``scope["state"]["allowance"]`` what that key has left.

    Args:
        app: the application.
        door: what is let in.
    """

    def __init__(self, app: App, door: Door) -> None:
        self._app, self._door = app, door
        self._allowances = Allowances(door.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        state = scope.setdefault("state", {})
        with ExitStack() as stack:
            try:
                if scope["path"] in OPEN_PATHS and scope["method"] not in _WITHOUT_BODY:
                    raise Refusal(f"{scope['method']} is not for {scope['path']!r}", 405, "method_not_allowed")
                owner = state["owner"] = self._owner(scope["path"], headers)
                allowance = state["allowance"] = self._allowances.of(owner)
                if "visit" in state:
                    state["visit"].key = self._door.keys.get(owner, "")
                if scope["path"] in GENERATING:
                    stack.enter_context(allowance.request())
                body = b"" if scope["method"] in _WITHOUT_BODY else await self._body(headers, receive)
            except Refusal as error:
                # what is still on its way is not read, unless it is so little that a new connection would cost more
                size = headers.get(b"content-length", b"0" if b"transfer-encoding" not in headers else b"")
                extra = state["allowance"].headers() if "allowance" in state else ()
                close = not (size.isdigit() and int(size[:20]) <= _DISCARDED)
                await refuse(scope, send, error, close, extra)
                return

            async def ending(message: Message) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    stack.close()  # whoever has the last byte may ask again at once
                await send(message)

            await self._app(scope, _replayed(body, receive), ending)

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
        if path in BROWSED_PATHS and scheme.lower() == b"basic":
            scheme, key = b"bearer", _password(key)
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


def _password(given: bytes) -> bytes:
    """Return the password of Basic authentication, empty where it cannot be read."""
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


@functools.lru_cache(maxsize=256)  # whoever knocks again and again hears the same
def _spelled(message: str, status: int, code: str | None, param: str | None) -> bytes:
    return json.dumps(Refusal(message, status, code, param).body()).encode()


async def refuse(
    scope: Scope, send: Send, error: Refusal, close: bool = False, extra: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send an error.

    Args:
        scope: of the request; what is noted of it is told the error.
        send: likewise.
        error: what to say.
        close: whether to close the connection.
        extra: further headers.
    """
    if visit := scope.get("state", {}).get("visit"):
        visit.code = error.code or error.kind
    spell = _spelled if len(error.message) < 200 else _spelled.__wrapped__  # long ones quote the client
    body = spell(error.message, error.status, error.code, error.param)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *extra]
    if close:
        headers.append((b"connection", b"close"))
    if error.status == 401:
        browsed = scope["path"] in BROWSED_PATHS
        headers.append((b"www-authenticate", b'Basic realm="thrifty"' if browsed else b"Bearer"))
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
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
        await refuse(scope, send, self._error)


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
