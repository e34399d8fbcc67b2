"""Logs that programs read: a JSON object a line. What clients wrote is not in them, unless the operator wants it."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

LOGGERS = ("thrifty", "uvicorn", "asyncio")
MOST_LINES = 10_000
"""That may wait to be written."""
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


class Queued(logging.handlers.QueueHandler):
    """Has a thread write, so that who reads the log slowly, or not at all, does not hold the server up.

    What comes while `MOST_LINES` wait is dropped, and counted in a line of its own.

    Args:
        writer: writes the lines.
    """

    def __init__(self, writer: logging.Handler) -> None:
        self._waiting: queue.Queue[logging.LogRecord] = queue.Queue(MOST_LINES)
        super().__init__(self._waiting)
        self._writer, self._dropped = writer, 0
        threading.Thread(target=self._write, name="thrifty-log", daemon=True).start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record as it is: it goes to no other process."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Take a record, if there is room."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Wait for what has come to be written, but not for ever."""
        with self._waiting.all_tasks_done:
            self._waiting.all_tasks_done.wait_for(lambda: not self._waiting.unfinished_tasks, LAST_SECONDS)

    def _write(self) -> None:
        while True:
            record = self._waiting.get()
            self._writer.handle(record)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                fields = {"levelname": "ERROR", "msg": "lines were dropped", "fields": {"dropped": dropped}}
                self._writer.handle(logging.makeLogRecord(fields))
            self._waiting.task_done()


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
    writer = logging.StreamHandler(stream)
    writer.setFormatter(JsonLines(prompts))
    handler = Queued(writer)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if requests and name == "thrifty" else logging.ERROR)


def _places(place: TracebackType | None) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(place)]
