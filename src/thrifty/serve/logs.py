"""Logs that programs read: a JSON object a line. What clients wrote is not in them, unless the operator wants it."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

LOGGERS = ("thrifty", "uvicorn")


class JsonLines(logging.Formatter):
    """Writes a record as a line of JSON.

    Args:
        prompts: whether what clients wrote may be in it. The message of an exception may quote that, so without it
            only the kind of the exception is told, and where it was raised.
    """

    def __init__(self, prompts: bool = False) -> None:
        super().__init__()
        self._prompts = prompts

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": self._event(record)}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, place = record.exc_info
            line["error"] = {"type": kind.__name__, "at": _places(place)}
            if self._prompts:
                line["error"]["message"] = str(error)
        return json.dumps(line, default=str)

    def _event(self, record: logging.LogRecord) -> str:
        # arguments of a message may be what a client wrote
        return record.getMessage() if self._prompts else str(record.msg).strip()


def configure(stream: TextIO, requests: bool = True, prompts: bool = False) -> None:
    """Write the log of this process to a stream.

    Args:
        stream: where to.
        requests: whether each request gets a line; what goes wrong gets one in any case.
        prompts: see `JsonLines`.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(prompts))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if requests and name == "thrifty" else logging.ERROR)


def _places(place: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(place)]
