"""How answers are told in the Responses API: items of reasoning and messages, and events for what happens to them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from thrifty.serve.answering import Answer
from thrifty.serve.engine import Channel, Done, Event
from thrifty.serve.errors import Refusal
from thrifty.serve.shapes import sse


@dataclass
class ResponsesShape:
    """A response; see `thrifty.serve.shapes.Shape`.

    Attributes:
        id: of the request.
        model: as the client named it.
        echoed: fields of the request that the response repeats.
        created: seconds since the epoch.
    """

    id: str
    model: str
    echoed: Mapping[str, Any]
    created: int = field(default_factory=lambda: int(time.time()))
    _number: int = 0
    _items: list[dict[str, Any]] = field(default_factory=list)
    _channel: Channel | None = None
    _pieces: list[str] = field(default_factory=list)

    def whole(self, answers: Sequence[Answer], usage: Mapping[str, Any]) -> dict[str, Any]:
        """See `Shape`."""
        (answer,) = answers
        runs = list(answer.runs)
        if not any(channel == "answer" for channel, _ in runs):
            runs.append(("answer", []))
        items = [
            self._item(place, channel, "".join(pieces), self._status(answer.end))
            for place, (channel, pieces) in enumerate(runs)
        ]
        return self._response(self._status(answer.end), items, usage)

    def begin(self, count: int) -> bytes:
        """See `Shape`."""
        response = self._response("in_progress", [], None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def event(self, index: int, event: Event) -> bytes:
        """See `Shape`."""
        if isinstance(event, Done):
            return b""
        told = b"" if event.channel == self._channel else self._close("completed") + self._open(event.channel)
        self._pieces.append(event.text)
        kind = "response.output_text.delta" if event.channel == "answer" else "response.reasoning_text.delta"
        more: dict[str, Any] = {"logprobs": []} if event.channel == "answer" else {}
        return told + self._event(kind, **self._place(), delta=event.text, **more)

    def end(self, index: int, answers: Sequence[Answer], usage: Mapping[str, Any]) -> bytes:
        """See `Shape`."""
        status = self._status(answers[0].end)
        told = b""
        if self._channel != "answer" and not any(item["type"] == "message" for item in self._items):
            told += self._close("completed") + self._open("answer")
        told += self._close(status)
        return told + self._event(f"response.{status}", response=self._response(status, self._items, usage))

    def fail(self, error: Refusal) -> bytes:
        """See `Shape`."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        response = self._response("failed", self._items, None)
        return self._event("response.failed", response={**response, "error": {"code": code, "message": error.message}})

    def _open(self, channel: Channel) -> bytes:
        self._channel, self._pieces = channel, []
        item = {**self._item(len(self._items), channel, "", "in_progress"), "content": []}
        return self._event("response.output_item.added", output_index=len(self._items), item=item) + self._event(
            "response.content_part.added", **self._place(), part=_part(channel, "")
        )

    def _close(self, status: str) -> bytes:
        if self._channel is None:
            return b""
        channel, text, place = self._channel, "".join(self._pieces), self._place()
        item = self._item(len(self._items), channel, text, status)
        kind = "response.output_text.done" if channel == "answer" else "response.reasoning_text.done"
        more: dict[str, Any] = {"logprobs": []} if channel == "answer" else {}
        told = self._event(kind, **place, text=text, **more)
        told += self._event("response.content_part.done", **place, part=_part(channel, text))
        told += self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        self._channel = None
        return told

    def _place(self) -> dict[str, Any]:
        place = len(self._items)
        return {"item_id": self._item_id(place, self._channel), "output_index": place, "content_index": 0}

    def _item_id(self, place: int, channel: Channel | None) -> str:
        return f"{'msg' if channel == 'answer' else 'rs'}_{self.id.partition('_')[2]}_{place}"

    def _item(self, place: int, channel: Channel, text: str, status: str) -> dict[str, Any]:
        item = {"id": self._item_id(place, channel), "status": status, "content": [_part(channel, text)]}
        if channel == "answer":
            return {**item, "type": "message", "role": "assistant"}
        return {**item, "type": "reasoning", "summary": []}

    def _status(self, done: Done) -> str:
        return "incomplete" if done.finish == "length" else "completed"

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number - 1, **fields}, kind)

    def _response(
        self, status: str, items: Sequence[Mapping[str, Any]], usage: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model,
            "output": list(items),
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "store": False,
            "previous_response_id": None,
            **self.echoed,
            "usage": usage,
        }


def _part(channel: Channel, text: str) -> dict[str, Any]:
    if channel == "answer":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text}
