"""Models on other servers, behind the seam of `thrifty.serve.engine`: what is text can be steered as text."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from thrifty.catalogue import Need
from thrifty.errors import MissingExtra, ThriftyError, UnknownName
from thrifty.methods import get_method, list_methods, method_class
from thrifty.methods.base import Composition, FlowMethod
from thrifty.models.base import Job
from thrifty.models.remote import row_seed
from thrifty.serve import effort
from thrifty.serve.choosing import without_addresses
from thrifty.serve.engine import BROKEN, CANCELLED, Ask, Channel, Done, Piece, Served
from thrifty.serve.errors import Refusal, refusal, shutting_down
from thrifty.serve.inbox import Inbox
from thrifty.serve.upstream_client import Upstreams
from thrifty.serve.upstream_flows import QUESTION, Voice, play
from thrifty.serve.upstream_helpers import Helper, Helpers
from thrifty.serve.upstream_order import PREFILLS, Order, Prefill, steered
from thrifty.serve.upstream_writing import Writing
from thrifty.traces.think import THINK_FORMATS, ThinkFormat
from thrifty.traces.trace import Problem, Trace, Usage

ACCEPT_SECONDS = 10.0
"""For how long a refusal of a server can still become the status of the response; later it is told in the stream."""
_log = logging.getLogger("thrifty.serve")


class UpstreamStream(Inbox):
    """A response that another server writes; see `thrifty.serve.engine.Stream`."""

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self.ask = ask
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writings: list[Writing] = []
        self.helping: list[Writing] = []
        self.task: asyncio.Task[None] | None = None
        self.cancelled = self.finishing = False
        self.began = time.monotonic()

    @property
    def begun(self) -> bool:
        """See `thrifty.serve.engine.Stream`."""
        return any(writing.begun for writing in (*self.writings, *self.helping))

    @property
    def usage(self) -> Usage:
        """What was spent so far."""
        helped = Usage(helper=sum(writing.usage.total for writing in self.helping))
        return sum((writing.usage for writing in self.writings), helped)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the conversation, or of what a method has made of it."""
        plain = [w for w in self.writings if w.order.messages == self.ask.messages]
        return next((w.prompt_tokens for w in (*plain, *reversed(self.writings))), 0)

    def cancel(self) -> None:
        """See `thrifty.serve.engine.Stream`."""
        if self.task is not None and not self.cancelled:  # twice, and what hangs up would be cancelled, too
            self.task.cancel()
        self.cancelled = True

    def finish(self) -> None:
        """See `thrifty.serve.engine.Stream`."""
        self.finishing = True
        for writing in (*self.writings, *self.helping):
            writing.finishing = True

    def enlist(self, writing: Writing, helping: bool) -> None:
        """Take a call in that is made for the response, perhaps of a helper."""
        writing.finishing = self.finishing
        (self.helping if helping else self.writings).append(writing)

    def show(self, piece: Piece) -> None:
        """Take a piece."""
        self.accept()
        self.put(piece)

    def accept(self) -> None:
        """Take note that a server answers."""
        if not self.accepted.done():
            self.accepted.set_result(None)


class UpstreamEngine:
    """Answers with models on other servers; see `thrifty.serve.engine.Engine`.

    Args:
        upstreams: the servers.
        models: what they serve: the name and the context's tokens, None where that is unknown; the default first.
        method: what answers where a client names nothing.
        offered: further specifications by name.
        slots: requests at work at the same time, and calls that they have in flight together.
        queue: requests that may wait beyond them.
        max_tokens: the most that a response may have.
        prefill: how the servers are asked to continue a message.
        efforts: whether they understand ``reasoning_effort``; if not, it bounds the thinking here.
        think: what marks the thinking there.
        helpers: the models of other servers that methods name.

    Raises:
        ThriftyError: a method cannot work here.
    """

    passes: frozenset[str] = frozenset(
        {"response_format", "presence_penalty", "frequency_penalty", "logit_bias", "verbosity"}
    )

    def __init__(
        self,
        upstreams: Upstreams,
        models: Mapping[str, int | None],
        *,
        method: str = "vanilla",
        offered: Mapping[str, str] | None = None,
        slots: int = 256,
        queue: int = 256,
        max_tokens: int = 1 << 17,
        prefill: Prefill = "none",
        efforts: bool = True,
        think: ThinkFormat = THINK_FORMATS["think"],
        helpers: Helpers | None = None,
    ) -> None:
        if prefill not in PREFILLS:
            raise UnknownName("--upstream-prefill", prefill, PREFILLS)
        self._upstreams, self._prefill, self._efforts, self._think = upstreams, prefill, efforts, think
        self._served = {
            name: Served(name, context, min(max_tokens, context or max_tokens), method, dict(offered or {}))
            for name, context in models.items()
        }
        self._composition = functools.lru_cache(maxsize=64)(self._checked)
        self._slots, self._queue, self._waiting = asyncio.Semaphore(slots), queue, 0
        self._calls = asyncio.Semaphore(slots)  # of its own: requests that wait for calls hold slots
        self._helpers = helpers or Helpers()
        self._streams: set[UpstreamStream] = set()
        self._threads = ThreadPoolExecutor(slots, "thrifty-flow")
        self._closed = False
        for spec in (method, *(offered or {}).values()):
            self._composition(spec)

    def models(self) -> Sequence[Served]:
        """See `thrifty.serve.engine.Engine`."""
        return list(self._served.values())

    def check(self, method: str, model: str) -> None:
        """See `thrifty.serve.engine.Engine`."""
        self._composition(method)

    async def start(self, ask: Ask) -> UpstreamStream:
        """See `thrifty.serve.engine.Engine`."""
        if self._closed:
            raise shutting_down()
        if self._waiting >= self._queue:
            raise Refusal("too many requests are waiting: try again in a moment", 429, "queue_full", retry_after=1.0)
        composition = self._composition(ask.method or self._served[ask.model].method)
        if ask.logprobs is not None:
            raise Refusal("logprobs are to be had of local models only: leave them out", 400, None, "logprobs")
        if ask.prompt is not None and composition.calls:
            raise Refusal(
                f"method {composition.calls!r} needs a conversation: use /v1/chat/completions", 400, None, "prompt"
            )
        stream = UpstreamStream(ask)
        stream.task = asyncio.create_task(self._run(stream, composition))
        self._streams.add(stream)
        stream.task.add_done_callback(functools.partial(self._forget, stream, composition))
        try:
            if not ask.sample:  # further samples need not wait for each other
                await asyncio.wait({stream.accepted}, timeout=ACCEPT_SECONDS)
        except asyncio.CancelledError:
            stream.cancel()
            raise
        if stream.accepted.done():
            stream.accepted.result()
        else:
            stream.accept()
        return stream

    async def close(self) -> None:
        """See `thrifty.serve.engine.Engine`."""
        self._closed = True
        tasks = [stream.task for stream in self._streams if stream.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._upstreams.close()
        await self._helpers.close()

    def _forget(self, stream: UpstreamStream, composition: Composition, task: asyncio.Task[None]) -> None:
        self._streams.discard(stream)
        if task.cancelled():  # before it had begun
            stream.put(self._done(stream, composition, CANCELLED))

    async def _run(self, stream: UpstreamStream, composition: Composition) -> None:
        """Answer one request, whatever happens."""
        failure: Refusal
        try:
            self._waiting += 1
            try:
                await self._slots.acquire()
            finally:
                self._waiting -= 1
            try:
                trace = await self._answer(stream, composition)
            finally:
                self._slots.release()
            stream.accept()
            stream.put(self._done(stream, composition, trace.exit_reason, trace))
            return
        except asyncio.CancelledError:
            if stream.cancelled:
                stream.accept()
                stream.put(self._done(stream, composition, CANCELLED))
                return
            failure = shutting_down()
        except ThriftyError as error:
            failure = refusal(error)
        except Exception as error:
            _log.error("a request failed", exc_info=error)
            failure = Refusal("the gateway failed on this request", 500, "engine_error")
        if stream.usage.total:
            failure.done = self._done(stream, composition, BROKEN)
        if stream.accepted.done():
            stream.put(failure)
        else:
            stream.accepted.set_exception(failure)

    async def _answer(self, stream: UpstreamStream, composition: Composition) -> Trace:
        ask = stream.ask
        order = self._order(ask, composition)
        if not composition.calls:
            async with self._calls:
                return await self._writing(stream, order, stream.show).write()
        stream.accept()
        voice = Voice(
            ask,
            order,
            asyncio.get_running_loop(),
            lambda order, live, helper: self._writing(stream, order, stream.show if live else _unseen, helper),
            composition,
            self._helpers,
            self._calls,
        )
        try:
            trace = await asyncio.get_running_loop().run_in_executor(self._threads, play, voice)
        except BaseException:
            await voice.give_up()
            raise
        for segment in trace.segments if not voice.shown else ():
            if segment.kind not in ("probe", "helper") and segment.text:
                channel: Channel = "answer" if segment.phase == "answer" else "thinking"
                stream.show(Piece(channel, segment.text))
        return trace

    def _writing(
        self, stream: UpstreamStream, order: Order, emit: Callable[[Piece], None], helper: Helper | None = None
    ) -> Writing:
        upstreams = helper.upstreams if helper else self._upstreams
        writing = Writing(upstreams, order, emit)
        stream.enlist(writing, helping=helper is not None)
        return writing

    def _order(self, ask: Ask, composition: Composition) -> Order:
        """Return what a server is to write for a request."""
        settings, given = ask.settings, ask.given
        seed = row_seed(settings.seed, Job(Problem(QUESTION, ()), ask.sample)) if ask.sample else settings.seed
        fields: dict[str, Any] = {"seed": seed, **ask.passed}
        if "temperature" in given or settings.temperature:
            fields["temperature"] = settings.temperature
        for name in ("top_p", "top_k", "min_p"):
            if name in given:
                fields[name] = getattr(settings, name)
        plain = all(part.over_text() is not None and part.slug == "vanilla" for part in composition.parts)
        if ask.effort is not None:
            word = effort.difficulty(ask.messages) if ask.effort == effort.AUTO else ask.effort
            if self._efforts and plain:
                fields["reasoning_effort"] = word
            else:
                settings = settings.with_(thinking_budget=effort.budget(word, settings.max_tokens))
        order = Order(
            ask.model,
            ask.messages,
            ask.prompt,
            fields,
            settings.max_tokens if ask.limited else None,
            max(1, settings.reserve),
            self._think,
            prefill=self._prefill,
            opened=None if ask.prompt is None else self._opened(ask.prompt),
        )
        return steered(order, settings, composition.parts)

    def _opened(self, prompt: str) -> bool:
        return self._think.thinks and prompt.rfind(self._think.open) > prompt.rfind(self._think.close)

    def _checked(self, spec: str) -> Composition:
        """Return the composition that a specification names.

        Raises:
            ThriftyError: there is none, or it cannot work here.
        """
        composition = get_method(spec)
        for part in composition.parts:
            flow = isinstance(part, FlowMethod) and part.needs == Need.TEXT
            if not flow and part.over_text() is None:
                raise ThriftyError(
                    f"method {part.spec!r} needs more of a model than its text, and a server gives nothing else: "
                    "run the model here (`thrifty serve --model FOLDER`), or take one of "
                    f"{', '.join(workable_methods())}"
                )
        if composition.calls:
            for part in composition.parts:
                if isinstance(part, FlowMethod):
                    part.check(Voice.nobody(self._helpers))
        return composition

    def _done(
        self, stream: UpstreamStream, composition: Composition, exit_reason: str, trace: Trace | None = None
    ) -> Done:
        usage = trace.usage if trace else stream.usage
        usage.wall_seconds = time.monotonic() - stream.began
        cut = trace is not None and trace.stop_reason in ("max_tokens", "loop")
        return Done(
            finish="length" if cut else "stop",
            usage=usage,
            prompt_tokens=stream.prompt_tokens,
            reasoning_tokens=usage.thinking,
            method=without_addresses(composition.spec),
            exit_reason=exit_reason,
            seed=stream.ask.settings.seed,
            notes=trace.events if trace else {},
            estimated=any(writing.estimated for writing in (*stream.writings, *stream.helping)),
        )


def _unseen(piece: Piece) -> None:
    """Show nobody a piece of what a method weighs against others."""


@functools.cache
def workable_methods() -> tuple[str, ...]:
    """Return the names of the methods that can work on another server's models."""
    found = []
    for slug in list_methods():
        try:
            cls = method_class(slug)
            if (issubclass(cls, FlowMethod) and cls.needs == Need.TEXT) or cls().over_text() is not None:
                found.append(slug)
        except (ThriftyError, MissingExtra, ImportError, TypeError):
            continue  # one of another package that cannot be had without options
    return tuple(found)
