"""The servers behind the gateway: which one is asked, and what its stream says."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from thrifty.errors import ThriftyError, Unreachable
from thrifty.models.client import DONE, Client, Failed, Patience, Rejected, TooLong
from thrifty.models.payload import Unreadable, choice_of, texts_of, usage_of
from thrifty.serve.errors import Refusal

COOL_SECONDS = 5.0
"""For how long a server that failed is asked last."""
LONGEST_WAIT = 10.0
"""Seconds that a request waits for a server which asks for patience; a client can wait longer by itself."""
_log = logging.getLogger("thrifty.serve")


@dataclass(frozen=True)
class Delta:
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
    usage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class _Server:
    """One server.

    Attributes:
        client: to ask it.
        model: what the model is called there, empty for the name that the client gave.
        adapted: what was learned of the fields that it does not take.
        tired_until: when it may be asked first again, by `time.monotonic`.
    """

    client: Client
    model: str
    adapted: set[str] = field(default_factory=set)
    tired_until: float = 0.0

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request as this server takes it."""
        sent = {**body, "model": self.model or body["model"]}
        if "continuous_usage_stats" in self.adapted and "stream_options" in sent:
            sent["stream_options"] = {"include_usage": True}
        if "max_completion_tokens" in self.adapted and "max_tokens" in sent:
            sent["max_completion_tokens"] = sent.pop("max_tokens")
        if "enable_thinking" in self.adapted and sent.get("messages", [{}])[-1].get("role") == "assistant":
            sent["chat_template_kwargs"] = {"enable_thinking": False}
        for name in ("stream_options", "chat_template_kwargs", "seed"):
            if name in self.adapted:
                sent.pop(name, None)
        return sent

    def adapts(self, error: Rejected, sent: Mapping[str, Any]) -> bool:
        """Tell whether a refusal names a field that can be left out or said otherwise, and note it."""
        if error.status not in (400, 422):
            return False
        known = ("continuous_usage_stats", "stream_options", "max_completion_tokens", "enable_thinking",
                 "chat_template_kwargs", "seed")  # fmt: skip
        for name in known:
            told = {**sent, **sent.get("stream_options", {}), "max_completion_tokens": None, "enable_thinking": None}
            inside = name in told
            if name in error.said and inside and name not in self.adapted:
                self.adapted.add(name)
                return self.body(sent) != sent
        return False


class Upstreams:
    """The servers that can answer, the first that can is asked.

    Args:
        urls: as ``http://localhost:8000/v1``, perhaps with ``#MODEL`` for what the model is called there.
        key_variable: the environment variable with their key, empty for none.
        patience: how long and how often to ask.

    Raises:
        ThriftyError: a URL or the key cannot be used.
    """

    def __init__(self, urls: Sequence[str], key_variable: str = "", patience: Patience | None = None) -> None:
        self.patience = patience or Patience(timeout=120.0, retries=2)
        parted = [url.partition("#") for url in urls]
        self._servers = [_Server(Client(url, key_variable, self.patience), model) for url, _, model in parted]

    async def close(self) -> None:
        """Close the connections."""
        for server in self._servers:
            await server.client.aclose()

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[Delta]]:
        """Ask for a stream; leaving the context hangs up.

        Args:
            path: below a server's URL.
            body: of the request; its model is replaced by what the model is called there.

        Yields:
            What it says, in order.

        Raises:
            Refusal: no server takes the request, or the stream breaks off.
        """
        try:
            async with asyncio.timeout(self.patience.deadline):
                server, response = await self._begin(path, body)
        except TimeoutError:
            raise Refusal("no upstream answered in time: try again later", 504, "upstream_timeout") from None
        deltas = self._deltas(server, response)
        try:
            yield deltas
        finally:
            with suppress(httpx.HTTPError):
                await deltas.aclose()
                await response.aclose()

    async def _begin(self, path: str, body: Mapping[str, Any]) -> tuple[_Server, httpx.Response]:
        """Return the first server that begins to answer, and its answer."""
        for failed in range(self.patience.retries + 1):
            error: Failed | Rejected | None = None
            tired = {id(server) for server in self._servers if server.tired_until > time.monotonic()}
            for server in sorted(self._servers, key=lambda server: id(server) in tired):
                try:
                    return server, await self._open(server, path, body)
                except (Failed, Rejected) as found:
                    if isinstance(found, Rejected) and found.status not in (401, 403, 404):
                        raise _refused(found) from found  # no other server would take it either
                    # what a server says may quote what it was asked, and stays out of the log
                    _log.warning("%s failed with status %s", server.client.url, found.status or "none")
                    wait = found.wait if isinstance(found, Failed) else 0.0
                    server.tired_until = time.monotonic() + max(wait, COOL_SECONDS)
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

    async def _open(self, server: _Server, path: str, body: Mapping[str, Any]) -> httpx.Response:
        while True:
            sent = server.body(body)
            try:
                return await server.client.attempt("POST", path, sent)
            except Rejected as error:
                if not server.adapts(error, sent):
                    raise

    async def _deltas(self, server: _Server, response: httpx.Response) -> AsyncGenerator[Delta, None]:
        size, ended = 0, False
        try:
            async for event in server.client.events(response):
                if event == DONE:
                    ended = True
                    break
                choice = choice_of(event, optional=True)
                thought, text = texts_of(choice, "message" if "message" in choice else "delta")
                size += len(thought) + len(text)
                if size > self.patience.max_bytes:
                    raise Refusal("the upstream does not stop: lower max_tokens", 502, "upstream_too_large")
                finish = choice.get("finish_reason")
                ended |= finish is not None
                yield Delta(thought, text, finish if isinstance(finish, str) else None, usage_of(event))
        except (Unreachable, Unreadable) as error:
            _log.warning("%s broke off", server.client.url)
            raise _broken() from error
        if not ended:
            raise _broken()


def _broken() -> Refusal:
    return Refusal("the upstream broke off before the end of its answer: try again", 502, "upstream_broke_off")


def _refused(error: Failed | Rejected) -> Refusal:
    """Return what a client is told; addresses of servers are no business of theirs."""
    if isinstance(error, Rejected):
        if error.status in (401, 403):
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


async def listed(urls: Sequence[str], key_variable: str, patience: Patience) -> list[Mapping[str, Any]]:
    """Return what the first server lists under ``/models``.

    Args:
        urls: as for `Upstreams`.
        key_variable: likewise.
        patience: likewise.

    Raises:
        ThriftyError: it lists nothing; the message names the fix.
    """
    client = Client(urls[0].partition("#")[0], key_variable, patience)
    try:
        found, _ = await client.fetch("GET", "/models", None, _models, retries=0)
    except Unreachable as error:
        raise ThriftyError(f"{error}; or name the model with --upstream-model") from error
    finally:
        await client.aclose()
    if not found:
        raise ThriftyError(f"{client.url} lists no model: name it with --upstream-model")
    return found


def _models(payload: Any) -> list[Mapping[str, Any]]:
    data = payload.get("data") if isinstance(payload, dict) else None
    if not isinstance(data, list):
        raise ValueError("no list of models")
    return [m for m in data if isinstance(m, dict) and isinstance(m.get("id"), str) and m["id"].isprintable()]
