"""What goes wrong between here and a model server, and what of it can be told on one line."""

from __future__ import annotations

import json
import os
import socket
import ssl

import httpx

from thrifty.errors import ContextOverflow, Unreachable


class Rejected(Unreachable):
    """A server refused a request, and asking again would not help.

    Attributes:
        status: the HTTP status.
        said: by the server, on one line.
    """

    def __init__(self, message: str, status: int, said: str = "") -> None:
        super().__init__(message)
        self.status, self.said = status, said


class TooLong(ContextOverflow):
    """A server says that a prompt does not fit its context.

    Attributes:
        said: by the server, on one line.
    """

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class Failed(Exception):
    """An attempt failed in a way that another one may mend.

    Attributes:
        what: went wrong.
        fix: what a user may do.
        status: the HTTP status, 0 where there was no answer.
        wait: seconds for which the server asks.
        silent: whether the server kept silent for too long.
        dropped: whether a connection broke, as one does that was kept open for longer than the server liked.
    """

    def __init__(
        self, what: str, fix: str, status: int = 0, wait: float = 0.0, silent: bool = False, dropped: bool = False
    ) -> None:
        super().__init__(f"{what}: {fix}")
        self.what, self.fix, self.status, self.wait = what, fix, status, wait
        self.silent, self.dropped = silent, dropped


def message_of(raw: bytes) -> str:
    """Return what an error body says, whichever of the usual shapes it has."""
    text = raw.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        for key in ("error", "message", "detail"):
            if isinstance(found, dict):
                found = found.get(key) or found
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def reason_of(error: BaseException) -> str:
    """Return the operating system's word for a failure, which lies deep in the chain of exceptions."""
    found = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        return "timed out"
    waiting: list[BaseException] = [error]
    while waiting:
        link = waiting.pop()
        if isinstance(link, OSError) and link.errno:
            plain = isinstance(link, ssl.SSLError | socket.gaierror)
            found = (link.strerror or found) if plain else os.strerror(link.errno).lower()
        below = link.__cause__ or link.__context__
        waiting += list(link.exceptions) if isinstance(link, BaseExceptionGroup) else [below] if below else []
    return found
