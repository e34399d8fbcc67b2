"""Requests to a model server: retries, deadlines, bounded bodies, and errors that fit on one line."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from thrifty.errors import ThriftyError, Unreachable
from thrifty.models.connections import Connections
from thrifty.models.failures import Failed, Rejected, TooLong, message_of, reason_of

DONE = "[DONE]"
_RETRIED = {408, 409, 429}
"""Beside all from 500 on."""
_ERROR_BYTES = 1 << 16
_LONGEST_WAIT = 60.0
_TOO_LONG = re.compile(r"context[ _](length|size|window)|maximum context", re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long and how often to ask.

    Attributes:
        timeout: seconds of silence after which one attempt is given up.
        deadline: seconds for one request, all attempts and waits together.
        retries: attempts after the first.
        backoff: seconds before the second attempt; they double from there.
        max_bytes: the largest body to accept.
    """

    timeout: float = 300.0
    deadline: float = 600.0
    retries: int = 4
    backoff: float = 0.5
    max_bytes: int = 8 << 20


class Client:
    """One OpenAI-compatible server, asked from the event loop that runs.

    The key goes into the header of requests and nowhere else.

    Args:
        url: where its API begins, as ``http://localhost:8000/v1``; credentials in it become basic authentication.
        key_variable: the environment variable with the key, empty for none; THRIFTY_API_KEY falls back on
            OPENAI_API_KEY.
        patience: how long and how often to ask.

    Raises:
        ThriftyError: the URL or the key cannot be used.
    """

    def __init__(self, url: str, key_variable: str, patience: Patience) -> None:
        self.patience = patience
        self._key_variable = key_variable
        try:
            address = httpx.URL(url.strip())
        except httpx.InvalidURL:
            address = httpx.URL("")
        if address.scheme not in ("http", "https") or not address.host or address.query:
            shown = re.sub(r"^(\w+://)?.*@", r"\1", url).partition("?")[0]
            raise ThriftyError(f"not a server URL: {shown!r}; write it like http://localhost:8000/v1#model-name")
        self.url = str(address.copy_with(userinfo=b"", fragment=None)).rstrip("/")
        variables = [key_variable, "OPENAI_API_KEY"] if key_variable == "THRIFTY_API_KEY" else [key_variable]
        self._found = next((v for v in variables if v and os.environ.get(v, "").strip()), None)
        key = os.environ[self._found].strip() if self._found else ""
        if not (key.isascii() and key.isprintable()):
            raise ThriftyError(f"the key in {self._found} holds characters that no key has: copy it anew")
        self._secrets = [secret for secret in (key, address.password, address.userinfo.decode("ascii")) if secret]
        self._headers = {
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": "thrifty",
            "Content-Type": "application/json",
        }
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        if address.userinfo:
            pair = f"{address.username}:{address.password}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode('ascii')}"
        silence = patience.timeout
        self._timeout = httpx.Timeout(silence, connect=min(10.0, silence), pool=None).as_dict()
        self._connections = Connections(address)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connections.aclose()

    async def fetch(
        self, verb: str, path: str, body: Any, read: Callable[[Any], T], retries: int | None = None
    ) -> tuple[T, int]:
        """Send a request until it is answered.

        Args:
            verb: GET or POST.
            path: below the server's URL.
            body: sent as JSON, None for nothing.
            read: makes the result of the parsed answer; its ValueError means that the answer makes no sense.
            retries: instead of the usual number.

        Returns:
            The result and how many attempts failed before it.

        Raises:
            Unreachable: no usable answer came in time; `Rejected` if asking again would not help.
            ContextOverflow: the server says that the prompt is too long.
        """

        async def attempt() -> T:
            response = await self.attempt(verb, path, body)
            try:
                raw = await self._body(response)
            finally:
                await response.aclose()
            try:
                return read(json.loads(raw))
            except (ValueError, RecursionError) as error:
                kind = self.clean(response.headers.get("content-type", "unknown type"))
                told = f"{self.url}{path} sent an answer that cannot be read ({kind}: {self.clean(str(error))})"
                raise Failed(told, "is it an OpenAI-compatible server?") from error

        return await self._persist(attempt, self.patience.retries if retries is None else retries)

    async def open(self, path: str, body: Any) -> httpx.Response:
        """Send a request until its answer begins; see `fetch`. The caller closes what is returned."""
        response, _ = await self._persist(lambda: self.attempt("POST", path, body), self.patience.retries)
        return response

    async def events(self, response: httpx.Response) -> AsyncGenerator[Any, None]:
        """Read the events of an answer that has begun.

        Args:
            response: what `open` or `attempt` returned.

        Yields:
            The parsed JSON of each ``data:`` line, and `DONE` itself.

        Raises:
            Unreachable: the answer broke off, or cannot be read.
        """
        try:
            whole = bytearray()  # of a server that does not stream; there are some that call events JSON
            async for line in self._lines(response):
                if whole or line.lstrip().startswith(b"{"):
                    whole += line + b"\n"
                    if len(whole) > self.patience.max_bytes:
                        raise self._oversized()
                if not line.startswith(b"data:") or whole:
                    continue
                data = line[5:].strip()
                yield DONE if data == b"[DONE]" else json.loads(data.decode("utf-8", "replace"))
            if whole:
                yield json.loads(whole)
                yield DONE
        except Failed as error:
            raise Unreachable(str(error)) from error
        except (ValueError, RecursionError) as error:
            told = f"{self.url} sent an event that cannot be read ({self.clean(str(error))})"
            raise Unreachable(f"{told}: is it an OpenAI-compatible server?") from error

    async def _persist(self, attempt: Callable[[], Awaitable[T]], retries: int) -> tuple[T, int]:
        last: Failed | None = None
        failed = 0
        with self.deadline(lambda: f"; before that, {last.what}" if last else ""):
            async with asyncio.timeout(self.patience.deadline) as clock:
                while True:
                    try:
                        return await attempt(), failed
                    except Failed as error:
                        last, failed = error, failed + 1
                    # Its own jitter: the generator of the run must not depend on the mood of a server.
                    jitter = random.SystemRandom().uniform(0.5, 1.0)
                    wait = last.wait + self.patience.backoff * 2 ** (failed - 1) * jitter
                    ends = clock.when() or 0.0
                    if failed > retries or asyncio.get_running_loop().time() + wait >= ends:
                        tries = f", asked {failed} times" if failed > 1 else ""
                        raise Unreachable(f"{last.what}{tries}: {last.fix}") from last
                    await asyncio.sleep(wait)

    async def attempt(self, verb: str, path: str, body: Any) -> httpx.Response:
        """Send a request once; return its answer as soon as it begins. The caller closes it.

        Args:
            verb: GET or POST.
            path: below the server's URL.
            body: sent as JSON, None for nothing.

        Raises:
            Failed: another attempt may be answered.
            Rejected: it would not.
            TooLong: the server says that the prompt is too long.
        """
        content = None if body is None else json.dumps(body).encode("ascii")
        request = httpx.Request(
            verb, self.url + path, headers=self._headers, content=content, extensions={"timeout": self._timeout}
        )
        with self._told():
            response = await self._connections.send(request)
        try:
            if response.headers.get("content-encoding", "identity") != "identity":
                # unpacked it could be of any size
                raise Failed(
                    f"{self.url}{path} answered {response.status_code} in an encoding that was not asked for",
                    "does what stands between compress it?",
                    response.status_code,
                )
            if not response.is_success:
                raise await self._refusal(response, path)
        except BaseException:
            with suppress(httpx.HTTPError):
                await response.aclose()
            raise
        return response

    async def _body(self, response: httpx.Response) -> bytes:
        data = bytearray()
        with self._told():
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > self.patience.max_bytes:
                    raise self._oversized()
        return bytes(data)

    async def _lines(self, response: httpx.Response) -> AsyncIterator[bytes]:
        held = bytearray()
        with self._told():
            async for chunk in response.aiter_raw():
                first, *others = chunk.split(b"\n")
                held += first
                for other in others:
                    yield bytes(held)
                    held = bytearray(other)
                if len(held) > self.patience.max_bytes:
                    raise self._oversized()
        yield bytes(held)

    async def _refusal(self, response: httpx.Response, path: str) -> Exception:
        """Make an error of an answer that is not a success; its body may be anything, of any length."""
        raw = bytearray()
        with suppress(httpx.RequestError):
            async for chunk in response.aiter_raw():
                raw += chunk
                if len(raw) > _ERROR_BYTES:
                    break
        said = self.clean(message_of(bytes(raw[:_ERROR_BYTES])))
        status = response.status_code
        told = f"{self.url}{path} answered {status}{f' ({said})' if said else ''}"
        if status in _RETRIED or status >= 500:
            fix = "it may be overloaded; try later or with a smaller batch size"
            return Failed(told, fix, status, _retry_after(response.headers.get("retry-after", "")))
        if status in (400, 413, 422) and _TOO_LONG.search(said):
            return TooLong(f"{told}: shorten the prompt or lower max_tokens", said)
        if status in (401, 403) and self._found:
            fix = f"check the key in the environment variable {self._found}"
        elif status in (401, 403):
            fix = f"set the environment variable {self._key_variable} to a key of this server"
        elif status == 404:
            fix = "check the model name behind the #, and that the URL ends in /v1"
        elif response.is_redirect:
            fix = f"use the address that it points to ({self.clean(response.headers.get('location', 'untold'))})"
        else:
            fix = "the server does not take this request; see its message, and check the URL and the settings"
        return Rejected(f"{told}: {fix}", status, said)

    def _oversized(self) -> Unreachable:
        return Unreachable(
            f"{self.url} sent more than {self.patience.max_bytes:,} bytes: lower max_tokens or raise max_bytes"
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Translate what the transport raises."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            what = f"no server answers at {self.url} ({self.clean(reason_of(error))})"
            raise Failed(what, "is it running, and does the URL end in /v1?") from error
        except httpx.TimeoutException as error:
            what = f"{self.url} was silent for {self.patience.timeout:g} s"
            raise Failed(
                what, "it may be overloaded; try a smaller batch size or a longer timeout", silent=True
            ) from error
        except httpx.RequestError as error:
            what = f"{self.url} broke off ({self.clean(reason_of(error))})"
            dropped = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)
            raise Failed(what, "is it running, and does the URL end in /v1?", dropped=dropped) from error

    @contextmanager
    def deadline(self, before: Callable[[], str] = str) -> Iterator[None]:
        """Tell a deadline that passes as `Unreachable`, with what else there is to tell."""
        try:
            yield
        except TimeoutError as error:
            told = f"{self.url} gave no complete answer within {self.patience.deadline:g} s{before()}"
            raise Unreachable(f"{told}: try a smaller batch size, fewer max_tokens or a longer deadline") from error

    def clean(self, text: str) -> str:
        """Return at most 300 printable characters of what a server said, on one line, the key blotted out."""
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line[:300]


def _retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for: a number or a date, at most a minute."""
    seconds = 0.0
    if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", value):
        seconds = float(value)
    else:
        with suppress(ValueError):
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    return min(max(seconds, 0.0), _LONGEST_WAIT)
