"""Models behind any OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, vendors."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

from thrifty.catalogue import Need
from thrifty.errors import ContextOverflow, MissingAccess, UnknownName, Unreachable
from thrifty.models.base import Job, Settings, TextModel, following, prompt_messages
from thrifty.models.client import DONE, Patience
from thrifty.models.failures import Rejected
from thrifty.models.flying import fly
from thrifty.models.http import Server
from thrifty.models.payload import Unreadable, account, choice_of, logprobs_of, texts_of, usage_of
from thrifty.traces.think import Splitter
from thrifty.traces.trace import Message, Phase, Problem, Segment, Trace

Api = Literal["chat", "completions"]
PARTNER_KEY = "THRIFTY_PARTNER_API_KEY"
"""The environment variable with the key of a server whose model is a partner of another server's."""

_PATHS = {"chat": "/chat/completions", "completions": "/completions"}
_FINISHED = {"stop": "eos", "length": "max_tokens", None: "eos"}


class RemoteModel(TextModel):
    """A model that somebody serves: messages in, text out.

    Stop strings are the server's: it applies them inside the thinking too. What only an engine can do, a budget
    or a reserve in tokens, is refused; `Settings.loop_stop` has no effect.

    Args:
        server: where it is served.
        model: its name there.
        api: ``chat``, or ``completions`` for a model without a chat template.
        logprobs: alternatives to ask for at each token; from 1 on, ``events["logprobs"]`` of a trace holds
            the log-probabilities of the chosen tokens.
    """

    gives: ClassVar[Need] = Need.TEXT | Need.LOGPROBS
    follows: ClassVar[bool] = True

    def __init__(self, server: Server, model: str, api: Api = "chat", logprobs: int = 0) -> None:
        if api not in _PATHS:
            raise UnknownName("API", api, _PATHS)
        self.model, self.api, self.logprobs = model, api, logprobs
        self.name = f"{server.url}#{model}"
        self._server = server
        self._partners: dict[str, RemoteModel] = {}

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        api: Api = "chat",
        key_variable: str = "THRIFTY_API_KEY",
        logprobs: int = 0,
        timeout: float = Patience.timeout,
        deadline: float = Patience.deadline,
        retries: int = Patience.retries,
        backoff: float = Patience.backoff,
        max_bytes: int = Patience.max_bytes,
    ) -> Self:
        """Find a model on a server.

        Args:
            url: as ``http://localhost:8000/v1#model-name``; without the name, the server must have exactly one model.
            api: ``chat``, or ``completions`` for a model without a chat template.
            key_variable: the environment variable that holds the key; THRIFTY_API_KEY falls back on OPENAI_API_KEY.
            logprobs: alternatives to ask for at each token, 0 for no log-probabilities.
            timeout: seconds of silence after which one attempt is given up.
            deadline: seconds for one response, all attempts together.
            retries: attempts after the first.
            backoff: seconds before the second attempt; they double from there.
            max_bytes: the longest answer to accept.

        Raises:
            ThriftyError: the URL or the key cannot be used, or the server has several models or none.
            Unreachable: no server answers there, or it refuses the key.
        """
        address, _, model = url.partition("#")
        server = Server(address, key_variable, Patience(timeout, deadline, retries, backoff, max_bytes))
        try:
            found = cls(server, model or server.only_model(), api, logprobs)
            if model:
                found.ping()
            return found
        except BaseException:
            server.close()
            raise

    def __repr__(self) -> str:
        return f"RemoteModel({self.name!r})"

    def ping(self) -> None:
        """Ask the server for a sign of life, once.

        Raises:
            Unreachable: no server answers there, or it refuses the key.
        """
        try:
            self._server.models()
        except Rejected as error:
            if error.status == 401:  # any other refusal comes from a server that lives but does not list models
                raise

    def partner(self, name: str) -> TextModel | None:
        """See `TextModel`: with the key of this model at the same server only, elsewhere with `PARTNER_KEY`."""
        if not name.startswith(("http://", "https://")):
            return None
        if name not in self._partners:
            address, _, model = name.partition("#")
            if address.strip().rstrip("/") == self._server.url:
                found = RemoteModel(self._server, model or self._server.only_model())
            else:
                found = RemoteModel.connect(name, key_variable=PARTNER_KEY, **asdict(self._server.patience))
            self._partners[name] = found
        return self._partners[name]

    def close(self) -> None:
        """Close the connections; requests in flight are cancelled."""
        for model in (self, *self._partners.values()):
            model._server.close()

    def respond(self, jobs: Iterable[Job], settings: Settings, method: str = "vanilla") -> Generator[Trace, None, None]:
        """Ask for responses, `settings.batch_size` at a time; traces come as they finish.

        Args:
            jobs: what to generate; read lazily.
            settings: how to.
            method: the name that the traces carry.

        Returns:
            The traces; closing the generator cancels what is in flight.

        Raises:
            MissingAccess: the settings ask for what a server cannot do.
            Unreachable: a request failed for good. What had finished by then is yielded first.
            ContextOverflow: the server says that a prompt is too long.
        """
        self._check(settings)
        server = self._server
        return fly(
            jobs,
            settings.batch_size,
            lambda job: server.submit(self._answer(job, settings, method)),
            server.result,
        )

    async def _answer(self, job: Job, settings: Settings, method: str) -> Trace:
        began = time.monotonic()
        body = self._body(job, settings)
        if self.logprobs and self.api == "chat":
            body |= {"logprobs": True, "top_logprobs": self.logprobs}
        elif self.logprobs:
            body["logprobs"] = self.logprobs
        try:
            reply, failed = await self._server.client.fetch("POST", _PATHS[self.api], body, _read_reply)
        except (Unreachable, ContextOverflow):
            if not job.optional:
                raise
            return Trace(job.problem.id, method, job.sample, settings.seed, [], "failed", None)
        trace = _trace(job, reply, settings, method, time.monotonic() - began)
        if failed:
            trace.events["retries"] = failed
        return trace

    def stream(self, messages: Sequence[Message], settings: Settings) -> Generator[tuple[Phase, str], None, Trace]:
        """Ask for one response and hand it over as it comes.

        Where only the prompt opens the thinking and the server does not split it off, what comes before the closer
        is handed over as answer; the trace at the end has it right.

        Args:
            messages: the conversation.
            settings: how to generate.

        Yields:
            The phase and the text of each piece.

        Returns:
            The trace, as the value of StopIteration.

        Raises:
            MissingAccess: the settings ask for what a server cannot do.
            Unreachable: the request failed, or the answer broke off.
            ContextOverflow: the server says that the prompt is too long.
        """
        self._check(settings)
        job = Job(Problem("question", tuple(messages)))
        began = time.monotonic()
        body = self._body(job, settings) | {"stream": True}
        try:
            reply = yield from self._stream(body | {"stream_options": {"include_usage": True}})
        except Rejected as error:
            if error.status not in (400, 422):
                raise
            reply = yield from self._stream(body)  # a server that knows no stream_options: the usage is estimated
        return _trace(job, reply, settings, "vanilla", time.monotonic() - began)

    def _stream(self, body: Mapping[str, Any]) -> Generator[tuple[Phase, str], None, _Reply]:
        reasoning: list[str] = []
        content: list[str] = []
        reply = _Reply()
        splitter = Splitter()
        ended = False
        size = 0
        for event in self._server.events(_PATHS[self.api], body):
            if event == DONE:
                ended = True
                continue
            try:
                choice = choice_of(event, optional=True)
                thought, text = texts_of(choice, "message" if "message" in choice else "delta")
            except Unreadable as error:
                raise Unreachable(
                    f"{self._server.url} broke off ({self._server.clean(str(error))}): try again"
                ) from None
            reply.usage = usage_of(event) or reply.usage
            reply.finish = choice.get("finish_reason") or reply.finish
            reply.stop_string |= isinstance(choice.get("stop_reason"), str)
            size += len(thought) + len(text)
            if size > self._server.patience.max_bytes:
                raise Unreachable(f"{self._server.url} does not stop: lower max_tokens or raise max_bytes")
            if thought:
                reasoning.append(thought)
                splitter.reasoned()
                yield "thinking", thought
            if text:
                content.append(text)
                yield from splitter.feed(text)
        if not ended and reply.finish is None:
            raise Unreachable(f"{self._server.url} broke off before the end of its answer: try again")
        yield from splitter.feed("", last=True)
        reply.reasoning, reply.content = "".join(reasoning), "".join(content)
        return reply

    def _check(self, settings: Settings) -> None:
        if settings.thinking_budget is not None or settings.answer_reserve is not None:
            raise MissingAccess(
                f"{self.name!r} is remote, and thinking_budget and answer_reserve need the engine here: leave them "
                "out, or load the weights, as in --model FOLDER"
            )

    def _body(self, job: Job, settings: Settings) -> dict[str, Any]:
        messages = prompt_messages(_asked(job))
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": row_seed(settings.seed, job),
        }
        if self.api == "chat":
            body["messages"] = messages
        else:  # as a model without a template is asked when its weights are here
            body["prompt"] = "\n\n".join(m["content"] for m in messages) + "\n"
        # Only what differs from the default: some servers refuse fields that they do not know.
        optional = {"top_k": settings.top_k, "min_p": settings.min_p, "stop": list(settings.stop)}
        return body | {name: value for name, value in optional.items() if value}


@dataclass
class _Reply:
    """What a server answered."""

    reasoning: str = ""
    content: str = ""
    finish: str | None = None
    stop_string: bool = False
    usage: Mapping[str, Any] = field(default_factory=dict)
    logprobs: list[float] = field(default_factory=list)


class _Parts(NamedTuple):
    thinking: str
    answer: str
    closed_by: str | None


def _split(content: str, reasoned: bool = False) -> _Parts:
    """Split a response into thinking and answer, markers included; an unclosed think block leaves no answer."""
    splitter = Splitter()
    if reasoned:
        splitter.reasoned()
    pieces = splitter.feed(content, last=True)
    border = max((i + 1 for i, (phase, _) in enumerate(pieces) if phase == "thinking"), default=0)
    texts = [text for _, text in pieces]
    return _Parts("".join(texts[:border]), "".join(texts[border:]), splitter.closed_by)


def _trace(job: Job, reply: _Reply, settings: Settings, method: str, seconds: float) -> Trace:
    parts = _split(reply.content, bool(reply.reasoning))
    thinking, answer, closed_by = reply.reasoning or parts.thinking, parts.answer, parts.closed_by
    asked = sum(len(m["content"]) for m in _asked(job))
    usage, events = account(reply.usage, asked, len(thinking), len(answer))
    usage.wall_seconds = seconds
    if (reply.reasoning and not reply.content) or (usage.thinking and not thinking):
        closed_by = "model" if answer else None  # the second: a vendor that hides the thinking but counts it
    if reply.logprobs:
        events["logprobs"] = reply.logprobs
    stop_reason = "stop" if reply.stop_string else _FINISHED.get(reply.finish, "stop")
    if reply.finish not in _FINISHED:
        events["finish_reason"] = reply.finish
    segments = [Segment("injected", "thinking", job.thought)] if job.thought else []
    if thinking:
        segments.append(Segment("thinking", "thinking", thinking))
    if answer:
        segments.append(Segment("answer", "answer", answer))
    return Trace(
        job.problem.id, method, job.sample, settings.seed, segments, stop_reason, closed_by, usage=usage, events=events
    )


def _asked(job: Job) -> Sequence[Message]:
    """Return the conversation of a job: no two kinds of servers continue a thought alike, so it is quoted to all."""
    messages = job.problem.messages
    return messages if job.thought is None else following(messages, job.thought)


def row_seed(seed: int, job: Job) -> int:
    """Return the seed of one response: the same in every process, in the 31 bits that every server takes."""
    row = json.dumps([seed, job.problem.id, job.sample]).encode("ascii")
    return int.from_bytes(hashlib.sha256(row).digest()[:4], "big") >> 1


def _read_reply(payload: Any) -> _Reply:
    choice = choice_of(payload)
    if "message" not in choice and "text" not in choice:
        raise Unreadable("a choice without a message")
    reasoning, content = texts_of(choice, "message")
    stopped = isinstance(choice.get("stop_reason"), str)
    return _Reply(reasoning, content, choice.get("finish_reason"), stopped, usage_of(payload), logprobs_of(choice))
