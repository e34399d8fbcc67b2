"""Methods of several calls over another server: their flows run in threads, their calls on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from itertools import takewhile
from typing import Any, ClassVar

from thrifty.catalogue import Need
from thrifty.methods.base import Composition, FlowMethod, Stage
from thrifty.models.base import Job, Settings, TextModel
from thrifty.models.flying import fly
from thrifty.models.remote import row_seed
from thrifty.serve.engine import Ask
from thrifty.serve.errors import Refusal
from thrifty.serve.upstream_helpers import Helper, Helpers
from thrifty.serve.upstream_order import Order, steered
from thrifty.serve.upstream_writing import Writing
from thrifty.traces.trace import Problem, Trace

QUESTION = "question"
"""What the problem of a request is called; further calls of a flow have a number behind it."""


BATCH = 16
"""Calls of one request at the same time."""
GIVE_UP_SECONDS = 1.0
"""For how long calls that nobody wants any more are waited for, so that what they have taken is known."""


class Voice(TextModel):
    """The model of one request, as the flow that answers it sees it.

    Args:
        ask: the request.
        order: what a server would write for it, were there no flow.
        loop: on which servers are asked.
        write: has an order written, by a helper or, without one, by the main model; told whether it is shown. Its
            account is its caller's to keep.
        composition: of the request: a flow, and perhaps methods that steer its calls.
        helpers: the models that methods name.
        seats: bounds the calls in flight of all requests.

    Attributes:
        shown: whether a call was shown while it was written.
    """

    gives: ClassVar[Need] = Need.TEXT
    follows: ClassVar[bool] = True

    def __init__(
        self,
        ask: Ask,
        order: Order,
        loop: asyncio.AbstractEventLoop,
        write: Callable[[Order, bool, Helper | None], Writing],
        composition: Composition,
        helpers: Helpers,
        seats: asyncio.Semaphore,
    ) -> None:
        self.name = ask.model
        self.ask, self.order, self._loop, self._write = ask, order, loop, write
        self.composition, self._helpers, self._seats = composition, helpers, seats
        self._partners: dict[str, Partner] = {}
        self._flying: set[Future[Trace]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._given_up = False
        self.shown = False

    @classmethod
    def nobody(cls, helpers: Helpers) -> Voice:
        """Return one that can only be checked."""
        found = cls.__new__(cls)
        found.name, found._helpers, found._partners = "the upstream", helpers, {}
        return found

    def partner(self, name: str) -> TextModel:
        """See `TextModel`."""
        if name not in self._partners:
            self._partners[name] = Partner(self, name, self._helpers.of(name))
        return self._partners[name]

    def respond(self, jobs: Iterable[Job], settings: Settings, method: str = "vanilla") -> Iterator[Trace]:
        """See `TextModel`; runs in a thread of its own.

        Raises:
            Refusal: a server does not answer, or nobody waits any more.
        """
        return self.ask_all(jobs, settings, lambda job: self._speak(job, settings, method))

    def ask_all(
        self, jobs: Iterable[Job], settings: Settings, speak: Callable[[Job], Coroutine[Any, Any, Trace]]
    ) -> Iterator[Trace]:
        """Have jobs done on the event loop, `settings.batch_size` at a time."""

        def start(job: Job) -> Future[Trace]:
            future = asyncio.run_coroutine_threadsafe(speak(job), self._loop)
            self._flying.add(future)
            future.add_done_callback(self._flying.discard)
            return future

        yield from fly(takewhile(lambda _: not self._given_up, jobs), settings.batch_size, start, _landed)
        if self._given_up:
            raise _gone()

    async def give_up(self) -> None:
        """Let the flow end as soon as it can, for nobody wants its answer, and wait until its calls have counted."""
        self._given_up = True
        for future in list(self._flying):  # not their tasks: who is cancelled twice hangs up on nobody
            future.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GIVE_UP_SECONDS)

    async def written(self, job: Job, order: Order, live: bool = False, helper: Helper | None = None) -> Trace:
        """Return what a model has written for a job.

        Raises:
            Refusal: it has not, and the job is not optional.
        """
        task = asyncio.current_task()
        assert task is not None, "coroutines run in tasks"
        self._tasks.add(task)
        try:
            if self._given_up:
                raise _gone()
            writing = self._write(order, live, helper)
            try:
                async with self._seats:
                    trace = await writing.write()
            except Refusal:
                if not job.optional:
                    raise
                trace = Trace("", "", 0, 0, [], "failed", None, usage=writing.usage)
        finally:
            self._tasks.discard(task)
        return replace(trace, problem_id=job.problem.id, sample=job.sample, seed=self.ask.settings.seed)

    async def _speak(self, job: Job, settings: Settings, method: str) -> Trace:
        main = job.problem.id == QUESTION
        of_question = main or tuple(job.problem.messages) == tuple(self.ask.messages)
        fields: dict[str, Any] = dict(self.order.fields)
        if not main:
            fields["seed"] = row_seed(settings.seed, job)
        if not of_question:  # what the client wants of its answer is not meant for plans and drafts
            fields = {name: value for name, value in fields.items() if name not in self.ask.passed}
        if not of_question or settings.temperature != self.ask.settings.temperature:
            fields |= {"temperature": settings.temperature, "top_p": settings.top_p}
        limited = self.ask.limited or settings.max_tokens != self.ask.settings.max_tokens
        order = replace(
            self.order,
            messages=job.problem.messages,
            fields=fields,
            limit=settings.max_tokens if limited else None,
            reserve=max(1, settings.reserve),
            thought=job.thought,
        )
        live = main and self.composition.streams
        self.shown |= live
        # only responses to the question are steered; what a planner thinks is bounded by its own limit
        order = steered(order, settings, self.composition.parts if of_question else ())
        return replace(await self.written(job, order, live), method=method)


class Partner(TextModel):
    """Another server's model that works beside the one of a request.

    Args:
        voice: of the request.
        name: as the operator wrote it.
        helper: where it is.
    """

    gives: ClassVar[Need] = Need.TEXT

    def __init__(self, voice: Voice, name: str, helper: Helper) -> None:
        self.name, self._voice, self._helper = name, voice, helper

    def respond(self, jobs: Iterable[Job], settings: Settings, method: str = "vanilla") -> Iterator[Trace]:
        """See `Voice.respond`."""
        return self._voice.ask_all(jobs, settings, lambda job: self._speak(job, settings, method))

    async def _speak(self, job: Job, settings: Settings, method: str) -> Trace:
        fields = {"seed": row_seed(settings.seed, job), "temperature": settings.temperature, "top_p": settings.top_p}
        think = self._voice.order.think
        reserve = max(1, settings.reserve)
        order = Order(self._helper.model, job.problem.messages, None, fields, settings.max_tokens, reserve, think)
        order = steered(order, settings, ())
        return replace(await self._voice.written(job, order, helper=self._helper), method=method)


def play(voice: Voice) -> Trace:
    """Answer a request with a method of several calls; for a thread.

    Args:
        voice: of the request.

    Raises:
        ThriftyError: it cannot be answered.
    """
    from thrifty.decoding.text_flow import run_text_flows

    composition, settings = voice.composition, voice.ask.settings.with_(batch_size=BATCH)
    for part in composition.parts:
        settings = part.settings(settings)
    (flow,) = (part for part in composition.parts if isinstance(part, FlowMethod))
    stage = Stage(voice, settings, composition.spec)  # type: ignore[arg-type]  # such a flow doesn't look inside
    problem = Problem(QUESTION, voice.ask.messages)
    jobs = [Job(problem, voice.ask.sample)]
    (trace,) = run_text_flows(voice, jobs, settings, lambda job: flow.flow(stage, job))
    return trace


def _landed(future: Future[Trace]) -> Trace:
    try:
        return future.result()
    except CancelledError:
        raise _gone() from None


def _gone() -> Refusal:
    return Refusal("nobody waits for this response any more", 499, "cancelled")
