"""The servers behind the gateway: which one is asked, and what its stream says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from thrifty.errors import Unreachable
from thrifty.models.client import DONE, Client, Patience
from thrifty.models.failures import Failed, Rejected, TooLong
from thrifty.models.payload import Unreadable, choice_of, texts_of, usage_of
from thrifty.serve.errors import Refusal
from thrifty.serve.upstream_order import Learned

COOL_SECONDS = 5.0
"""For how long a server that failed is asked last."""
LONGEST_WAIT = 10.0
"""Seconds that a request waits for a server which asks for patience; a client can wait longer by itself."""
FIRST_BYTE_SECONDS = 15.0
"""For how long a server may keep silent before the next one is asked; the last one has the whole patience."""
_SILENCE = 5.0
"""Seconds after which a server that let a request down counts as one that hangs."""
_REST_SECONDS = 0.1
"""In which a body has to end behind its last event, for its connection to be used again."""
_ADAPTATIONS = ("continuous_usage_stats", "stream_options", "max_completion_tokens", "enable_thinking",
                "chat_template_kwargs", "seed", "skip_special_tokens")  # fmt: skip
_log = logging.getLogger("thrifty.serve")


class Delta(NamedTuple):
    """What one event of a stream adds.

    Attributes:
        thought: reasoning that the server tells apart.
        text: everything else, think markers included where it tells nothing apart.
        finish: the server's reason for the end, None before.
        usage: as far as the server tells it here.
    """

    thought: str = ""
    text: str = ""
    finish: str | None = None
    usage: Mapping[str, Any] = {}


@dataclass(eq=False)
class _Server:
    """One server.

    Attributes:
        client: to ask it.
        model: what the model is called there, empty for the name that the client gave.
        adapted: what was learned of the fields that it does not take.
        learned: what its responses have shown, by the name that clients have for the model.
        tired_until: when it may be asked first again, by `time.monotonic`.
    """

    client: Client
    model: str
    adapted: frozenset[str] = frozenset()
    learned: defaultdict[str, Learned] = field(default_factory=lambda: defaultdict(Learned))
    tired_until: float = 0.0

    def body(self, body: Mapping[str, Any], adapted: frozenset[str]) -> dict[str, Any]:
        """Return a request as this server takes it, if it is to be adapted like this."""
        sent = {**body, "model": self.model or body["model"]}
        if "continuous_usage_stats" in adapted and "stream_options" in sent:
            sent["stream_options"] = {"include_usage": True}
        if "max_completion_tokens" in adapted and "max_tokens" in sent:
            sent["max_completion_tokens"] = sent.pop("max_tokens")
        if "enable_thinking" in adapted and sent.get("messages", [{}])[-1].get("role") == "assistant":
            sent["chat_template_kwargs"] = {"enable_thinking": False}
        for name in ("stream_options", "chat_template_kwargs", "seed", "skip_special_tokens"):
            if name in adapted:
                sent.pop(name, None)
        return sent

    async def open(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Ask it, without the fields that it turns out not to take.

        Raises:
            Failed: it may be asked again.
            Rejected: it refuses.
            TooLong: the prompt is too long for it.
        """
        adapted, again = self.adapted, False
        while True:
            sent = self.body(body, adapted)
            try:
                response = await self.client.attempt("POST", path, sent)
            except Failed as error:
                if again or not error.dropped:
                    raise
                again = True  # a connection that it had closed meanwhile says nothing about it
                continue
            except Rejected as error:
                known = (adapted | {name} for name in _ADAPTATIONS if name in error.said and name not in adapted)
                changed = next((more for more in known if self.body(body, more) != sent), None)
                if error.status not in (400, 422) or changed is None:
                    raise
                adapted = changed
                continue
            # only now: what a client wrote may be quoted in a refusal, and must not change the requests of others
            self.adapted |= adapted
            return response

    def warn(self, event: str, status: int = 0) -> None:
        """Put into the log that it failed; what it says may quote what it was asked, and stays out."""
        _log.warning(event, extra={"fields": {"upstream": self.client.url, "status": status or None}})

    def tire(self, seconds: float) -> None:
        """Have it asked last for a while."""
        self.tired_until = time.monotonic() + max(seconds, COOL_SECONDS)


class Incoming:
    """An answer that has begun; iterating gives what it says, in order.

    Args:
        server: that answers.
        response: its answer.
        model: by the name that clients have for it.
        max_bytes: the most that may come.

    Attributes:
        learned: what is known of the model there; more may be learned.
        over: whether it has come to its end.
    """

    def __init__(self, server: _Server, response: httpx.Response, model: str, max_bytes: int) -> None:
        self.learned, self.over = server.learned[model], False
        self._server, self._response, self._max_bytes = server, response, max_bytes
        self._events = server.client.events(response)
        self._deltas = self._read()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas

    async def _read(self) -> AsyncGenerator[Delta, None]:
        size, spoken, ended = 0, False, False
        try:
            async for event in self._events:
                if event == DONE:
                    ended = spoken
                    break
                choice = choice_of(event, optional=True)
                spoken = spoken or bool(choice)
                thought, text = texts_of(choice, "message" if "message" in choice else "delta")
                size += len(thought) + len(text)
                if size > self._max_bytes:
                    raise Refusal("the upstream does not stop: lower max_tokens", 502, "upstream_too_large")
                finish = choice.get("finish_reason")
                ended = ended or finish is not None
                yield Delta(thought, text, finish if isinstance(finish, str) else None, usage_of(event))
        except (Unreachable, Unreadable) as error:
            if not ended:  # behind the end of an answer, only its usage can be lost
                self._server.warn("an upstream broke off")
                raise _broken() from error
        if not ended:
            raise _broken()
        self.over = True

    async def leave(self) -> None:
        """Read to the end of the body, so that its connection can be used again, unless that takes long."""
        with suppress(TimeoutError, Unreachable):
            async with asyncio.timeout(_REST_SECONDS):
                async for _ in self._events:
                    pass
        await self.hang_up()

    async def hang_up(self) -> None:
        """Close the connection, if anything may still come on it."""
        with suppress(httpx.HTTPError):
            await self._deltas.aclose()
            await self._events.aclose()
            await self._response.aclose()


class Upstreams:
    """The servers that can answer, the first that can is asked.

    Args:
        urls: as ``http://localhost:8000/v1``, perhaps with ``#MODEL`` for what the model is called there.
        key_variables: the environment variable with the key of each, empty for none; none at all where nobody asks.
        patience: how long and how often to ask.

    Raises:
        ThriftyError: a URL or a key cannot be used.
    """

    def __init__(
        self, urls: Sequence[str], key_variables: Sequence[str] = (), patience: Patience | None = None
    ) -> None:
        self.patience = patience or Patience(timeout=120.0, retries=2)
        parted = [url.partition("#") for url in urls]
        keys = key_variables or [""] * len(urls)
        self._servers = [
            _Server(Client(url, key, self.patience), model) for (url, _, model), key in zip(parted, keys, strict=True)
        ]
        self._leaving: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*self._leaving)
        for server in self._servers:
            await server.client.aclose()

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Incoming]:
        """Ask for a stream; leaving the context before its end hangs up.

        Args:
            path: below a server's URL.
            body: of the request; its model is replaced by what the model is called there.

        Yields:
            What comes back.

        Raises:
            Refusal: no server takes the request, or the stream breaks off.
        """
        try:
            async with asyncio.timeout(self.patience.deadline):
                server, response = await self._begin(path, body)
        except TimeoutError:
            raise Refusal("no upstream answered in time: try again later", 504, "upstream_timeout") from None
        incoming = Incoming(server, response, body["model"], self.patience.max_bytes)
        try:
            yield incoming
        finally:
            if incoming.over:  # nobody needs to wait until the connection is free
                task = asyncio.create_task(incoming.leave())
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
            else:
                await incoming.hang_up()

    async def _begin(self, path: str, body: Mapping[str, Any]) -> tuple[_Server, httpx.Response]:
        """Return the first server that begins to answer, and its answer."""
        for failed in range(self.patience.retries + 1):
            error: Failed | Rejected | None = None
            now = time.monotonic()
            servers = sorted(self._servers, key=lambda server: server.tired_until > now)
            for server in servers:
                try:
                    return server, await self._open(server, path, body, last=server is servers[-1])
                except (Failed, Rejected) as found:
                    if isinstance(found, Rejected) and found.status not in (401, 402, 403, 404):
                        raise _refused(found) from found  # no other server would take it either
                    # what clients are told: that they may come again, rather than what is wrong with the last server
                    error = found if error is None or isinstance(found, Failed) else error
                except TooLong as found:
                    raise Refusal(
                        f"the upstream says: {found.said}; shorten the prompt or lower max_tokens",
                        400,
                        "context_length_exceeded",
                        "messages",
                    ) from found
            assert error is not None, "there is at least one server"
            wait = error.wait if isinstance(error, Failed) else LONGEST_WAIT + 1
            wait = max(wait, self.patience.backoff * 2**failed)
            if failed == self.patience.retries or wait > LONGEST_WAIT:
                break
            await asyncio.sleep(wait)
        assert error is not None, "without an error it has returned"
        raise _refused(error) from error

    async def _open(self, server: _Server, path: str, body: Mapping[str, Any], last: bool) -> httpx.Response:
        """Ask one server; a failure makes it one that is asked last for a while."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(None if last else min(self.patience.timeout, FIRST_BYTE_SECONDS)):
                return await server.open(path, body)
        except TimeoutError:
            error: Failed | Rejected = Failed(f"{server.client.url} is silent", "is it overloaded?", silent=True)
        except asyncio.CancelledError:
            if time.monotonic() - began > _SILENCE:  # whoever asked has lost patience
                server.tire(0.0)
            raise
        except (Failed, Rejected) as found:
            if isinstance(found, Rejected) and found.status not in (401, 402, 403, 404):
                raise
            error = found
        server.warn("an upstream failed", error.status)
        # one that hangs costs the next request as much again
        server.tire(max(error.wait if isinstance(error, Failed) else 0.0, time.monotonic() - began))
        raise error


def _broken() -> Refusal:
    return Refusal("the upstream broke off before the end of its answer: try again", 502, "upstream_broke_off")


def _refused(error: Failed | Rejected) -> Refusal:
    """Return what a client is told; addresses of servers are no business of theirs."""
    if isinstance(error, Rejected):
        if error.status in (401, 402, 403):
            return Refusal(
                "the upstream refuses the gateway's key: whoever runs it should check --upstream-key-env", 502,
                "upstream_key",
            )  # fmt: skip
        if error.status == 404:
            return Refusal(f"the upstream does not know this model or route: {error.said}", 502, "upstream_not_found")
        if error.status in (400, 413, 422):
            return Refusal(f"the upstream refuses this request: {error.said}", 400, "upstream_refused")
        return Refusal(f"the upstream answered {error.status}: {error.said}", 502, "upstream_refused")
    if error.status == 429:
        return Refusal("the upstream is busy: try again later", 429, "upstream_busy", retry_after=error.wait or 1.0)
    if error.silent:
        return Refusal("the upstream kept silent for too long: try again later", 504, "upstream_timeout")
    told = f"the upstream failed with status {error.status}" if error.status else "no upstream can be reached"
    return Refusal(f"{told}: try again later", 502, "upstream_failed", retry_after=error.wait or None)
