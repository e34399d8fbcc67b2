"""Methods of several calls over another server: their flows run in threads, their calls on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any, ClassVar

from thrifty.catalogue import Need
from thrifty.methods.base import Composition, FlowMethod, Stage
from thrifty.models.base import Job, Settings, TextModel
from thrifty.models.remote import row_seed
from thrifty.serve.engine import Ask
from thrifty.serve.errors import Refusal
from thrifty.serve.upstream_order import Order, steered
from thrifty.serve.upstream_writing import Writing
from thrifty.traces.trace import Problem, Trace

QUESTION = "question"
"""What the problem of a request is called; further calls of a flow have a number behind it."""


class Voice(TextModel):
    """The model of one request, as the flow that answers it sees it.

    Args:
        ask: the request.
        order: what a server would write for it, were there no flow.
        loop: on which servers are asked.
        writing: makes what writes an order; told whether it is shown.
        composition: of the request: a flow, and perhaps methods that steer its calls.

    Attributes:
        shown: whether a call was shown while it was written.
    """

    gives: ClassVar[Need] = Need.TEXT

    def __init__(
        self,
        ask: Ask,
        order: Order,
        loop: asyncio.AbstractEventLoop,
        writing: Callable[[Order, bool], Writing],
        composition: Composition,
    ) -> None:
        self.name = ask.model
        self.ask, self._order, self._loop, self._writing = ask, order, loop, writing
        self.composition = composition
        self._flying: set[Future[Trace]] = set()
        self._given_up = False
        self.shown = False

    @classmethod
    def nobody(cls) -> Voice:
        """Return one that can only be checked."""
        found = cls.__new__(cls)
        found.name = "the upstream"
        return found

    def respond(self, jobs: Iterable[Job], settings: Settings, method: str = "vanilla") -> Iterator[Trace]:
        """See `TextModel`; runs in a thread of its own.

        Raises:
            Refusal: a server does not answer, or nobody waits any more.
        """
        futures = []
        for job in jobs:
            if self._given_up:
                break
            future = asyncio.run_coroutine_threadsafe(self._speak(job, settings, method), self._loop)
            self._flying.add(future)
            futures.append(future)
        try:
            for future in futures:
                yield self._answered(future)
        finally:
            for future in futures:
                future.cancel()
                self._flying.discard(future)
        if self._given_up:
            raise _gone()

    def give_up(self) -> None:
        """Let the flow end as soon as it can: nobody wants its answer."""
        self._given_up = True
        for future in list(self._flying):
            future.cancel()

    @staticmethod
    def _answered(future: Future[Trace]) -> Trace:
        try:
            return future.result()
        except CancelledError:
            raise _gone() from None

    async def _speak(self, job: Job, settings: Settings, method: str) -> Trace:
        main = job.problem.id == QUESTION
        of_question = main or tuple(job.problem.messages) == tuple(self.ask.messages)
        fields: dict[str, Any] = dict(self._order.fields)
        if not main:
            fields["seed"] = row_seed(settings.seed, job)
        if not of_question:  # what the client wants of its answer is not meant for plans and drafts
            fields = {name: value for name, value in fields.items() if name not in self.ask.passed}
        if not of_question or settings.temperature != self.ask.settings.temperature:
            fields |= {"temperature": settings.temperature, "top_p": settings.top_p}
        limited = self.ask.limited or settings.max_tokens != self.ask.settings.max_tokens
        order = replace(
            self._order,
            messages=job.problem.messages,
            fields=fields,
            limit=settings.max_tokens if limited else None,
            reserve=max(1, settings.reserve),
        )
        live = main and self.composition.streams
        self.shown |= live
        # only responses to the question are steered; what a planner thinks is bounded by its own limit
        order = steered(order, settings, self.composition.parts if of_question else ())
        trace = await self._writing(order, live).write()
        return replace(trace, problem_id=job.problem.id, sample=job.sample, method=method, seed=settings.seed)


def play(voice: Voice) -> Trace:
    """Answer a request with a method of several calls; for a thread.

    Args:
        voice: of the request.

    Raises:
        ThriftyError: it cannot be answered.
    """
    from thrifty.decoding.text_flow import run_text_flows

    composition, settings = voice.composition, voice.ask.settings.with_(batch_size=16)
    for part in composition.parts:
        settings = part.settings(settings)
    (flow,) = (part for part in composition.parts if isinstance(part, FlowMethod))
    stage = Stage(voice, settings, composition.spec)  # type: ignore[arg-type]  # such a flow doesn't look inside
    problem = Problem(QUESTION, voice.ask.messages)
    jobs = [Job(problem, voice.ask.sample)]
    (trace,) = run_text_flows(voice, jobs, settings, lambda job: flow.flow(stage, job))
    return trace


def _gone() -> Refusal:
    return Refusal("nobody waits for this response any more", 499, "cancelled")
