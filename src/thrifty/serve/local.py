"""A model that runs here, behind the seam of `thrifty.serve.engine`: one thread decodes for all requests."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue

from thrifty.errors import ContextOverflow, ThriftyError
from thrifty.methods import get_method
from thrifty.methods.base import Composition
from thrifty.models.torch import TorchModel
from thrifty.serve import effort
from thrifty.serve.engine import Ask, Event, Served
from thrifty.serve.errors import Refusal, shutting_down
from thrifty.serve.inbox import Inbox
from thrifty.serve.play import Order, Play
from thrifty.serve.scheduler import Scheduler
from thrifty.spec import format_spec
from thrifty.traces.trace import Problem

_log = logging.getLogger("thrifty.serve")


class LocalStream(Inbox):
    """A response that the engine thread writes and the event loop reads; see `thrifty.serve.engine.Stream`.

    Args:
        order: what is to be answered.
        emit: takes the events on the engine thread, with the stream that they are for.
    """

    def __init__(self, order: Order, emit: Callable[[LocalStream, Event | Refusal], None]) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.play = Play(order, functools.partial(emit, self))

    @property
    def begun(self) -> bool:
        """See `thrifty.serve.engine.Stream`."""
        return self.play.begun

    def cancel(self) -> None:
        """See `thrifty.serve.engine.Stream`."""
        self.play.cancelled = True

    def finish(self) -> None:
        """See `thrifty.serve.engine.Stream`."""
        self.play.finishing = True


class LocalEngine:
    """Answers with a model that runs here; see `thrifty.serve.engine.Engine`.

    Args:
        model: which answers.
        method: what answers where a client names nothing.
        offered: further specifications by name.
        slots: requests at work at the same time, and rows decoded together.
        queue: requests that may wait beyond them.
        max_tokens: the most that a response may have, None for the model's context.
        difficulty: path of what ``thrifty tune diffadapt`` wrote for this model, which then tells what the effort
            ``auto`` stands for; empty for the rule of `thrifty.serve.effort.difficulty`.

    Raises:
        ThriftyError: a method cannot work here.
    """

    passes: frozenset[str] = frozenset()

    def __init__(
        self,
        model: TorchModel,
        *,
        method: str = "vanilla",
        offered: Mapping[str, str] | None = None,
        slots: int = 32,
        queue: int = 256,
        max_tokens: int | None = None,
        difficulty: str = "",
    ) -> None:
        self.model, self.slots, self.queue = model, slots, queue
        context = model.context_length
        self._served = Served(model.name, context, min(max_tokens or context, context), method, dict(offered or {}))
        self._difficulty = difficulty
        self._longest = max(len(model.texts.bytes_of(token)) for token in range(len(model.texts)))
        self._composition = functools.lru_cache(maxsize=64)(self._checked)
        self._preparing = 0
        self._prepared: tuple[Ask, Order] | None = None
        self._inbox: SimpleQueue[Play | None] = SimpleQueue()
        self._waiting: deque[Play] = deque()
        self._outbox: list[tuple[LocalStream, Event | Refusal]] = []
        self._scheduler = Scheduler(model, slots)
        self._closed = False
        for spec in (method, *self._served.methods.values(), *([self._auto("vanilla")] if difficulty else [])):
            self._composition(spec)
        self._thread = threading.Thread(target=self._run, name="thrifty-engine", daemon=True)
        self._thread.start()

    def models(self) -> Sequence[Served]:
        """See `thrifty.serve.engine.Engine`."""
        return [self._served]

    def check(self, method: str, model: str) -> None:
        """See `thrifty.serve.engine.Engine`."""
        self._composition(method)

    async def start(self, ask: Ask) -> LocalStream:
        """See `thrifty.serve.engine.Engine`."""
        if self._closed:
            raise shutting_down()
        if self._preparing + self._inbox.qsize() + len(self._waiting) >= self.queue:
            raise Refusal("too many requests are waiting: try again in a moment", 429, "queue_full", retry_after=1.0)
        stream = LocalStream(await self._ordered(ask), self._emit)
        if self._closed:  # meanwhile
            raise shutting_down()
        self._inbox.put(stream.play)
        return stream

    async def _ordered(self, ask: Ask) -> Order:
        """Return what is to be done for a request: prepared beside the decoding, for a long prompt takes a while."""
        first = replace(ask, sample=0)
        if self._prepared is not None and self._prepared[0] == first:  # another sample of the request
            return replace(self._prepared[1], sample=ask.sample)
        self._preparing += 1
        try:
            order = await asyncio.to_thread(self._order, ask)
        except ThriftyError:
            raise
        except Exception as error:
            _log.error("a request could not be prepared", exc_info=error)
            raise Refusal("the engine failed on this request", 500, "engine_error") from error
        finally:
            self._preparing -= 1
        self._prepared = (first, order)
        return order

    async def close(self) -> None:
        """See `thrifty.serve.engine.Engine`."""
        self._closed = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """Decode until the engine is closed; all that follows runs on this thread."""
        while True:
            try:
                idle = not self._scheduler.plays and not self._waiting
                if not self._take_in(wait=idle):
                    return
                self._forget_cancelled()
                while self._waiting and len(self._scheduler.plays) < self.slots:
                    self._scheduler.start(self._waiting.popleft())
                self._scheduler.step()
            except Exception as error:  # what a request does wrong is caught below; nobody must wait for ever
                _log.error("the engine failed", exc_info=error)
                self._abandon(Refusal("the engine failed: try again", 500, "engine_error"))
            self._flush()

    def _take_in(self, wait: bool) -> bool:
        """Take what has come in; tell whether to go on."""
        while True:
            try:
                play = self._inbox.get(block=wait)
            except Empty:
                return True
            wait = False
            if play is None:
                self._abandon(shutting_down())
                self._flush()
                return False
            self._waiting.append(play)

    def _forget_cancelled(self) -> None:
        """End what nobody wants any more before its turn comes."""
        cancelled = [play for play in self._waiting if play.cancelled]
        if cancelled:
            self._waiting = deque(play for play in self._waiting if play not in cancelled)
        for play in cancelled:
            play.give_up()

    def _emit(self, stream: LocalStream, event: Event | Refusal) -> None:
        self._outbox.append((stream, event))

    def _flush(self) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[LocalStream, Event | Refusal]]] = {}
        for stream, event in self._outbox:
            by_loop.setdefault(stream.loop, []).append((stream, event))
        self._outbox = []
        for loop, events in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, events)
            except RuntimeError:  # the loop is closed, and nobody reads any more
                for stream, _ in events:
                    stream.cancel()

    def _abandon(self, error: Refusal) -> None:
        """End everything."""
        for play in (*self._scheduler.plays, *self._waiting):
            play.fail(error)
        self._waiting.clear()
        self._scheduler = Scheduler(self.model, self.slots)

    def _checked(self, spec: str) -> Composition:
        """Return the composition that a specification names.

        Raises:
            ThriftyError: there is none, or it cannot work here.
        """
        composition = get_method(spec)
        alone = next((part.slug for part in composition.parts if part.alone), None)
        if alone:
            raise ThriftyError(
                f"method {alone!r} decodes in a way of its own, which a server's batch cannot hold: "
                f"run it with `thrifty ask --method {alone}`, or choose another"
            )
        composition.check(self.model)
        return composition

    def _auto(self, spec: str) -> str:
        """Return the specification that reads how hard a question is, and then does what another one says."""
        probing = format_spec("diffadapt", {"probe": self._difficulty, "temperatures": False})
        return probing if spec == "vanilla" else f"{probing}+{spec}"

    def _order(self, ask: Ask) -> Order:
        """Return what is to be done for a request.

        Raises:
            ThriftyError: it cannot be done; the text goes to the client.
        """
        model, settings, spec = self.model, ask.settings, ask.method or self._served.method
        probed = ask.effort == effort.AUTO and self._difficulty
        composition = self._composition(self._auto(spec) if probed else spec)
        problem = Problem("question", ask.messages)
        self._refuse_misfits(ask, composition)
        prompt = self._rendered(ask)
        tokens, room = self._measured(prompt)
        closing = self._closing(ask, prompt)
        # no room to close the thinking and answer: the prompt closes it, and nothing is left to steer
        tight = model.think.thinks and min(settings.max_tokens, room) < model.close_length + 2
        if tight:
            composition = self._composition("vanilla")
            tokens, room = self._measured(prompt + closing)
        limit = settings.max_tokens if ask.limited else min(settings.max_tokens, room)
        budget = settings.thinking_budget
        if ask.effort is not None and not probed:
            word = effort.difficulty(ask.messages) if ask.effort == effort.AUTO else ask.effort
            budget = effort.budget(word, limit)
        settings = settings.with_(max_tokens=limit, thinking_budget=budget)
        if not settings.reserve:
            settings = settings.with_(answer_reserve=1)
        return Order(composition, settings, problem, ask.prompt, tokens, ask.sample, ask.logprobs, closing, tight)

    def _measured(self, prompt: str) -> tuple[int, int]:
        """Return the tokens of a prompt, and how many the context leaves for the response.

        Raises:
            ContextOverflow: it leaves none.
        """
        tokens = len(self.model.encode_prompt(prompt))
        if tokens >= self.model.context_length:
            raise self._too_long(tokens)
        return tokens, self.model.context_length - tokens

    def _closing(self, ask: Ask, prompt: str) -> str:
        """Return what to write behind a prompt so that the response begins with the answer."""
        think = self.model.think
        if not think.thinks:
            return ""
        question = ask.messages[-1]["content"] if ask.messages else ""
        if self.model.tracker.start(prompt, question).phase == "thinking":
            return think.force_close
        return think.force_open + think.force_close if ask.messages else ""

    def _refuse_misfits(self, ask: Ask, composition: Composition) -> None:
        calls, spec = composition.calls, composition.spec
        if ask.prompt is not None and calls:
            raise Refusal(f"method {calls!r} needs a conversation: use /v1/chat/completions", 400, None, "prompt")
        if ask.logprobs is not None and not composition.streams:
            raise Refusal(f"method {spec!r} chooses among samples and gives no logprobs", 400, None, "logprobs")

    def _rendered(self, ask: Ask) -> str:
        """Return the prompt as the plain model gets it."""
        given = ask.prompt if ask.prompt is not None else "".join(message["content"] for message in ask.messages)
        size = len(given.encode())
        if size > self._longest * self.model.context_length:  # not worth tokenising
            raise self._too_long(-(-size // self._longest))
        if ask.prompt is not None:
            return ask.prompt
        if not self.model.template:
            return self.model.render(ask.messages)
        from jinja2 import TemplateError

        try:
            return self.model.render(ask.messages)
        except TemplateError as error:
            said = str(error)[:200]
            raise Refusal(f"the model's chat template refuses these messages: {said}", 400, None, "messages") from error

    def _too_long(self, tokens: int) -> ContextOverflow:
        return ContextOverflow(
            f"the prompt has at least {tokens} tokens, but {self.model.name!r} has a context of "
            f"{self.model.context_length}: shorten it"
        )


def _deliver(events: Sequence[tuple[LocalStream, Event | Refusal]]) -> None:
    for stream, event in events:
        stream.put(event)
