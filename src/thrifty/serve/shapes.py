"""How answers are told: as chat completions or text completions, whole or as a stream of events."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from thrifty.serve.answering import Answer
from thrifty.serve.engine import Done, Event, Piece, TokenLogprob
from thrifty.serve.errors import Refusal

DONE = b"data: [DONE]\n\n"


class Shape(Protocol):
    """One of the forms in which a request is answered.

    Usages come from the caller, who alone knows what was saved.
    """

    def whole(self, answers: Sequence[Answer], usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        ...

    def begin(self, count: int) -> bytes:
        """Return the first events of a stream.

        Args:
            count: responses that will come.
        """
        ...

    def event(self, index: int, event: Event) -> bytes:
        """Return the events that tell a piece, or the end of all but the last response."""
        ...

    def end(self, index: int, answers: Sequence[Answer], usage: Mapping[str, Any]) -> bytes:
        """Return the last events of a stream, which tell the end of the last response to end."""
        ...

    def fail(self, error: Refusal) -> bytes:
        """Return the last events of a stream that breaks off."""
        ...


def sse(value: Mapping[str, Any], name: str = "") -> bytes:
    """Return a server-sent event.

    Args:
        value: told as JSON.
        name: of the event, empty for none.
    """
    data = encoded(value, separators=(",", ":"))
    return b"%sdata: %s\n\n" % (f"event: {name}\n".encode() if name else b"", data)


def encoded(value: Mapping[str, Any], separators: tuple[str, str] | None = None) -> bytes:
    """Return JSON; half a surrogate pair, which a server may send escaped, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=separators).encode("utf-8", "replace")


def spelled(data: bytes) -> str:
    """Return the text of a token, broken characters as U+FFFD."""
    return data.decode(errors="replace")


@dataclass(frozen=True)
class _Chunked:
    """What chat and text completions share.

    Attributes:
        id: of the request.
        model: as the client named it.
        include_usage: whether the usage comes in a chunk of its own, as OpenAI's does, instead of in the last one.
        created: seconds since the epoch.
    """

    id: str
    model: str
    include_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def _chunk(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any] | None = None) -> bytes:
        told: dict[str, Any] = {**self._head(True), "choices": list(choices)}
        if usage is not None or self.include_usage:
            told["usage"] = usage
        return sse(told)

    def _head(self, streamed: bool) -> dict[str, Any]:
        raise NotImplementedError

    def _ending(self, index: int, finish: str) -> dict[str, Any]:
        raise NotImplementedError

    def end(self, index: int, answers: Sequence[Answer], usage: Mapping[str, Any]) -> bytes:
        """See `Shape`."""
        last = self._ending(index, answers[index].end.finish)
        if self.include_usage:
            return self._chunk([last]) + self._chunk([], usage) + DONE
        return self._chunk([last], usage) + DONE

    def fail(self, error: Refusal) -> bytes:
        """See `Shape`."""
        return sse(error.body()) + DONE


@dataclass(frozen=True)
class ChatShape(_Chunked):
    """Chat completions; see `Shape`.

    Attributes:
        logprobs: whether the client wants them.
    """

    logprobs: bool = False

    def whole(self, answers: Sequence[Answer], usage: Mapping[str, Any]) -> dict[str, Any]:
        """See `Shape`."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": answer.text("answer"),
                    "refusal": None,
                    **_reasoning(answer.text("thinking")),
                },
                "logprobs": _chat_logprobs(answer.logprobs) if self.logprobs else None,
                "finish_reason": answer.end.finish,
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head(False), "choices": choices, "usage": usage}

    def begin(self, count: int) -> bytes:
        """See `Shape`."""
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._chunk([self._delta(index, delta)]) for index in range(count))

    def event(self, index: int, event: Event) -> bytes:
        """See `Shape`."""
        if isinstance(event, Done):
            return self._chunk([self._ending(index, event.finish)])
        delta = {"content": event.text} if event.channel == "answer" else _reasoning(event.text)
        choice = self._delta(index, delta)
        if self.logprobs and event.logprobs:
            choice["logprobs"] = _chat_logprobs(event.logprobs)
        return self._chunk([choice])

    def _head(self, streamed: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if streamed else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _delta(self, index: int, delta: Mapping[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _ending(self, index: int, finish: str) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": finish}


def _reasoning(text: str) -> dict[str, str]:
    """Return the reasoning under both names that clients look for."""
    return {"reasoning_content": text, "reasoning": text} if text else {}


def _chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    def told(data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": spelled(data), "logprob": logprob, "bytes": list(data)}

    content = [{**told(t.data, t.logprob), "top_logprobs": [told(*other) for other in t.top]} for t in logprobs]
    return {"content": content, "refusal": None}


@dataclass(frozen=True)
class CompletionShape(_Chunked):
    """Text completions; see `Shape`. The reasoning stands beside the text, not in it.

    Attributes:
        logprobs: whether the client wants them.
    """

    logprobs: bool = False
    _offsets: dict[int, int] = field(default_factory=dict)

    def whole(self, answers: Sequence[Answer], usage: Mapping[str, Any]) -> dict[str, Any]:
        """See `Shape`."""
        choices = [
            {
                "index": index,
                "text": answer.text("answer"),
                **_reasoning(answer.text("thinking")),
                "logprobs": self._logprobs(index, answer.logprobs),
                "finish_reason": answer.end.finish,
            }
            for index, answer in enumerate(answers)
        ]
        return {**self._head(False), "choices": choices, "usage": usage}

    def begin(self, count: int) -> bytes:
        """See `Shape`."""
        return b"".join(self._chunk([self._choice(index, "")]) for index in range(count))

    def event(self, index: int, event: Event) -> bytes:
        """See `Shape`."""
        if isinstance(event, Done):
            return self._chunk([self._ending(index, event.finish)])
        return self._chunk([self._told(index, event)])

    def _told(self, index: int, piece: Piece) -> dict[str, Any]:
        if piece.channel == "thinking":
            return {**self._choice(index, ""), **_reasoning(piece.text)}
        return {**self._choice(index, piece.text), "logprobs": self._logprobs(index, piece.logprobs)}

    def _head(self, streamed: bool) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def _ending(self, index: int, finish: str) -> dict[str, Any]:
        return {**self._choice(index, ""), "finish_reason": finish}

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        offsets = []
        for one in logprobs:
            offsets.append(self._offsets.setdefault(index, 0))
            self._offsets[index] += len(spelled(one.data))
        return {
            "tokens": [spelled(one.data) for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [{spelled(data): value for data, value in one.top} for one in logprobs],
            "text_offset": offsets,
        }
