"""What is noted of each request: counted, and written to the log, when it is over."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from thrifty.serve.engine import Done
from thrifty.serve.guard import GENERATING, App, Message, Receive, Scope, Send
from thrifty.traces.trace import Usage

CLIENT_GONE = 499
"""The status of a request whose client went away, as nginx writes it."""
KINDS = ("prompt", "thinking", "answer", "injected", "latent_steps", "probe", "helper", "reread")
"""Fields of `Usage` that add up to its total."""
_FIXED = frozenset({*GENERATING, "/v1/models", "/openapi.json", "/healthz", "/metrics", "/status", "/status.json"})
_ROUTES = (
    (re.compile(r"/v1/models/.+", re.DOTALL), "/v1/models/{model}"),
    (re.compile(r"/v1/requests/[^/]+/finish"), "/v1/requests/{id}/finish"),
)
_POLLED = frozenset({"/healthz", "/metrics", "/status", "/status.json"})
"""Routes that are asked all the time, and not worth a line where all is well."""
MOST_REFUSED_LINES = 50
"""Lines a second about requests that were refused before a model was asked: strangers do not choose the log's size."""
_log = logging.getLogger("thrifty.serve")


@dataclass
class Visit:
    """A request on its way through the server. Nothing here is what a client wrote, `said` apart.

    Attributes:
        route: as it is described, not as it was asked for.
        status: what the client was told, or would have been if the stream had not begun.
        id: of the request, empty where nothing was asked of a model; so are the following.
        key: the name of its key.
        model: as the engine lists it.
        method: the specification of what ran.
        code: of the error, if there was one.
        stream: whether the answer was streamed.
        dones: the ends of its responses.
        saved: against plain responses, None where that is unknown.
        began: by the clock of `time.monotonic`.
        first_piece: likewise, None while there is no text.
        said: what was asked and answered; only where the operator wants that in the log.
    """

    route: str
    status: int = 0
    id: str = ""
    key: str = ""
    model: str = ""
    method: str = ""
    code: str = ""
    stream: bool = False
    dones: list[Done] = field(default_factory=list)
    saved: int | None = None
    began: float = field(default_factory=time.monotonic)
    first_piece: float | None = None
    said: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    @property
    def first_token(self) -> float | None:
        """Seconds until the first text, None if there was none."""
        return None if self.first_piece is None else self.first_piece - self.began

    def told(self) -> dict[str, Any]:
        """Return its line in the log."""
        line: dict[str, Any] = {"route": self.route, "status": self.status, "seconds": round(self.seconds, 4)}
        line |= {name: value for name in ("key", "code", "id") if (value := getattr(self, name))}
        if self.model:
            used = sum((done.usage for done in self.dones), Usage())
            line |= {"model": self.model, "method": self.method, "stream": self.stream}
            line |= {
                "tokens": {name: getattr(used, name) for name in KINDS},
                "saved": self.saved,
                "first_token_seconds": None if self.first_token is None else round(self.first_token, 4),
                "exit_reasons": [done.exit_reason for done in self.dones],
            }
        return line | (self.said or {})


class Visited:
    """Note every request of an application, as ``scope["state"]["visit"]``.

    Args:
        app: the application.
        over: told each request when it is over.
    """

    def __init__(self, app: App, over: Callable[[Visit], None]) -> None:
        self._app, self._over = app, over
        self._second, self._lines, self._unlogged = 0.0, 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(_route(scope["path"]))
        scope.setdefault("state", {})["visit"] = visit

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and not visit.status:
                visit.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            visit.status = visit.status or CLIENT_GONE
            self._over(visit)
            if self._worth_a_line(visit):
                unlogged = {"unlogged": self._unlogged} if self._unlogged else {}
                self._unlogged = 0
                _log.info("request", extra={"fields": visit.told() | unlogged})

    def _worth_a_line(self, visit: Visit) -> bool:
        if visit.status < 400:
            return visit.route not in _POLLED
        if visit.model:
            return True
        if (now := time.monotonic()) - self._second >= 1:
            self._second, self._lines = now, 0
        self._lines += 1
        self._unlogged += self._lines > MOST_REFUSED_LINES
        return self._lines <= MOST_REFUSED_LINES


def _route(path: str) -> str:
    if path in _FIXED:
        return path
    return next((route for pattern, route in _ROUTES if pattern.fullmatch(path)), "other")
