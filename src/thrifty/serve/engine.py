"""The seam between the API and what answers: a local model, or another server.

The API turns each response that a client wants into an `Ask` and hands it to an `Engine`; the engine answers with
a stream of `Piece`s and a last `Done`. An engine knows nothing of HTTP, and the API nothing of tokens.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from thrifty.models.base import Settings
from thrifty.traces.trace import Message, Usage

Channel = Literal["thinking", "answer"]
Finish = Literal["stop", "length"]
CANCELLED = "cancelled"
"""The exit reason of a response that nobody wanted any more."""
BROKEN = "broken"
"""The exit reason of a response that failed after tokens were taken for it."""


@dataclass(frozen=True)
class Ask:
    """One response that a client wants; a request with ``n=3`` makes three of them.

    Attributes:
        id: of the request, the same for all its samples; unguessable.
        model: as `Engine.models` lists it.
        messages: the conversation; empty where `prompt` is given.
        prompt: raw text to be continued, None for a conversation.
        method: specification of the method, None where the client named none: the engine takes what `effort` says,
            or its default.
        settings: how to generate. Its `max_tokens` bounds thinking and answer together, `stop` ends the answer only,
            `seed` is never left open.
        limited: whether the client gave `max_tokens` itself; if not, the engine may lower it to what fits.
        sample: index among the samples of the request, from 0.
        logprobs: alternatives to report at each token of the answer, 0 for the chosen token alone, None for nothing.
        effort: the client's ``reasoning_effort``, None where it gave none; see `thrifty.serve.effort`.
        passed: fields of the body that only some engines can serve, such as ``response_format``, as the client wrote
            them; the API has refused those that `Engine.passes` does not name.
        given: names of the fields that the client itself has set; what the others stand for may be left to a server.
    """

    id: str
    model: str
    settings: Settings
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    method: str | None = None
    limited: bool = True
    sample: int = 0
    logprobs: int | None = None
    effort: str | None = None
    passed: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model found a token of the answer, and what else it considered.

    Attributes:
        data: the bytes that the token spells; they may be part of a character.
        logprob: of the chosen token, in nats.
        top: the likeliest tokens, bytes and log-probability each, the likeliest first.
    """

    data: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A bit of the response, think markers and stop strings removed, never half a character.

    Attributes:
        channel: whether it belongs to the reasoning or to the answer.
        text: never empty.
        tokens: that it completes.
        logprobs: of those tokens, where they were asked for; of the answer only.
    """

    channel: Channel
    text: str
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of a response.

    Attributes:
        finish: ``length`` if a limit ended it, else ``stop``.
        usage: the account: everything that any model read or wrote for it.
        prompt_tokens: of the conversation as the model read it, once, however many calls the method made.
        reasoning_tokens: of the tokens of the response, those before the answer, markers and what the method wrote
            included.
        method: the specification of what really ran.
        exit_reason: why it ended, in one word: the limit that stopped it, or who closed the thinking.
        seed: with which it can be had again.
        notes: what the method did and saw: small JSON values.
        estimated: whether a server left counts out, so that some are estimates.
    """

    finish: Finish
    usage: Usage
    prompt_tokens: int
    reasoning_tokens: int
    method: str
    exit_reason: str
    seed: int
    notes: Mapping[str, Any] = field(default_factory=dict)
    estimated: bool = False

    @property
    def completion_tokens(self) -> int:
        """Tokens of the response, those of samples that competed for it included; a latent step counts as one."""
        return self.usage.generated + self.usage.latent_steps


Event = Piece | Done


class Stream(Protocol):
    """A response that is being written.

    Iterating gives `Piece`s and then one `Done`, whose exit reason is ``cancelled`` after `cancel`. It raises
    `thrifty.serve.errors.Refusal` if the response breaks off. Who stops reading may begin again where it was.
    """

    @property
    def begun(self) -> bool:
        """Whether work on it has begun: it waits no longer for its turn here, nor for the first sign of a server."""
        ...

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def cancel(self) -> None:
        """Stop the response: nobody wants it any more. Its tokens so far still count. Callable at any time."""

    def finish(self) -> None:
        """Close the thinking and answer now; nothing happens if the answer has begun. Callable at any time."""


@dataclass(frozen=True)
class Served:
    """A model that an engine serves.

    Attributes:
        id: its name.
        context_length: tokens that prompt and response may have together, None where that is unknown.
        max_tokens: the most that a response may have.
        method: what answers where the client names nothing.
        methods: specifications that the operator offers by name: ``MODEL@NAME``.
    """

    id: str
    context_length: int | None
    max_tokens: int
    method: str
    methods: Mapping[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """What answers. All methods are called on the event loop, and none may block it.

    Attributes:
        passes: fields of a request body that it takes in `Ask.passed`.
    """

    passes: frozenset[str]

    def models(self) -> Sequence[Served]:
        """Return the models that it serves now, the default first."""
        ...

    def check(self, method: str, model: str) -> None:
        """Refuse a method before any work starts.

        Args:
            method: a specification as a client wrote it, or the operator at start.
            model: as `models` lists it.

        Raises:
            ThriftyError: it does not exist, or cannot work here; the text goes to the client.
        """
        ...

    async def start(self, ask: Ask) -> Stream:
        """Take a request in.

        Raises:
            ThriftyError: it cannot be answered as it stands; `thrifty.serve.errors.Refusal` carries a status of its
                own, such as 429 where the queue is full.
        """
        ...

    async def close(self) -> None:
        """Release everything; streams that are still open end with a `Refusal`."""
        ...
