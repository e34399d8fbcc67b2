"""Logs that programs read: a JSON object a line. What clients wrote is not in them, unless the operator wants it."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections import deque
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

LOGGERS = ("thrifty", "uvicorn", "asyncio")
MOST_LINES = 10_000
"""That may wait to be written."""
TOGETHER_SECONDS = 0.05
"""In which lines are collected."""
LAST_SECONDS = 5.0
"""That they have to be written when the server ends."""


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
        written = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": written, "level": record.levelname.lower(), "event": self._event(record)}
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


class Queued(logging.Handler):
    """Has a thread write, so that who reads the log slowly, or not at all, does not hold the server up.

    Lines are written together, for to wake a thread costs more than a line. What comes while `MOST_LINES` wait is
    dropped, and counted in a line of its own.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._waiting: deque[logging.LogRecord] = deque()
        self._news = threading.Event()
        self._dropped = 0
        self._writing = False
        threading.Thread(target=self._write, name="thrifty-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, if there is room."""
        if len(self._waiting) >= MOST_LINES:
            self._dropped += 1
            return
        self._waiting.append(record)
        if not self._news.is_set():
            self._news.set()

    def flush(self) -> None:
        """Wait for what has come to be written, but not for ever."""
        end = time.monotonic() + LAST_SECONDS
        while (self._waiting or self._writing) and time.monotonic() < end:
            time.sleep(TOGETHER_SECONDS / 5)

    def _write(self) -> None:
        while True:
            self._news.wait()
            time.sleep(TOGETHER_SECONDS)
            self._news.clear()
            self._writing = True
            while records := [self._waiting.popleft() for _ in range(min(len(self._waiting), 1000))]:
                if self._dropped:
                    told = {"levelname": "ERROR", "msg": "lines were dropped", "fields": {"dropped": self._dropped}}
                    self._dropped = 0
                    records.append(logging.makeLogRecord(told))
                try:
                    self._stream.write("".join(self.format(record) + "\n" for record in records))
                    self._stream.flush()
                except Exception:  # nobody reads any more: that must not end the thread
                    self.handleError(records[0])
            self._writing = False


def flush() -> None:
    """Wait for what was logged to be written."""
    for handler in logging.getLogger(LOGGERS[0]).handlers:
        handler.flush()


def configure(stream: TextIO, requests: bool = True, prompts: bool = False) -> None:
    """Write the log of this process to a stream.

    Args:
        stream: where to.
        requests: whether each request gets a line; what goes wrong gets one in any case.
        prompts: see `JsonLines`.
    """
    handler = Queued(stream)
    handler.setFormatter(JsonLines(prompts))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if requests and name == "thrifty" else logging.ERROR)


def _places(place: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(place)]
