"""Methods of several calls: samples, plans, helpers and searches, all decoded in shared batches.

A flow is a generator: it yields the calls that it wants answered, is sent the finished rows, and returns
the trace of its problem. Many flows run at once, and their calls fill one batch for each model, so that a
method written as if it were alone is decoded as efficiently as any other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from thrifty.decoding.controller import Controller, Drafter
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.row import Row
from thrifty.models.attention import AttentionPolicy
from thrifty.models.base import Job, Settings, TextModel
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Message, Segment, Trace, Usage

Role = Literal["sample", "probe", "helper"]


@dataclass(frozen=True)
class Call:
    """One response that a flow wants.

    Attributes:
        prompt: the rendered prompt.
        controllers: which steer the response.
        settings: how to generate, None for the settings of the run.
        model: which answers, None for the main model.
        prefix: how the response begins; the method wrote it.
        parent: a row that was called with ``keep`` and has stopped, to go on from instead of a prompt.
        keep: whether the row may be gone on from.
        stream: which of the job's random streams it draws from, None for the next in the flow's order;
            the first is the one that the plain model draws from.
        drafter: guesses what the response will be; None for none.
        messages: the conversation, for a model that takes no rendered prompt (`thrifty.decoding.text_flow`).
        thought: what such a model is to answer by instead of thinking for itself, None for nothing.
        optional: whether the flow can do without: where such a model fails, the reply has `stopped` as ``failed``.
    """

    prompt: str = ""
    controllers: Sequence[Controller] = ()
    settings: Settings | None = None
    model: TorchModel | TextModel | None = None
    prefix: str = ""
    parent: Row | None = None
    keep: bool = False
    stream: int | None = None
    drafter: Drafter | None = None
    messages: Sequence[Message] = ()
    thought: str | None = None
    optional: bool = False


Flow = Generator[Sequence[Call], list[Row], Trace]
"""Yields calls, is sent their rows in the same order, returns the trace."""


@dataclass(frozen=True)
class Wanted:
    """A call of a flow, ready to be decoded.

    Attributes:
        job: of its own; the row that answers it carries this very object.
        plan: what to do.
        model: which answers.
        place: among the calls that the flow waits for.
    """

    job: Job
    plan: Plan
    model: TorchModel
    place: int


class Playing:
    """A flow at work: its calls go out, their rows come back.

    Args:
        model: answers the calls that name no other.
        job: what the flow answers.
        flow: a fresh one.
    """

    def __init__(self, model: TorchModel, job: Job, flow: Flow) -> None:
        self.model, self.job, self.flow = model, job, flow
        self._started = time.perf_counter()
        self._streams = 0
        self._rows: list[Row | None] = []

    def begin(self) -> list[Wanted] | Trace:
        """Return the first calls, or the trace where none is needed."""
        return self._advance(None)

    def answer(self, place: int, row: Row) -> list[Wanted] | Trace:
        """Take a finished row.

        Args:
            place: of its call.
            row: the answer.

        Returns:
            The next calls, the trace if the flow has ended; no calls while others are still being answered.
        """
        self._rows[place] = row
        rows = [row for row in self._rows if row is not None]
        return self._advance(rows) if len(rows) == len(self._rows) else []

    def _advance(self, rows: list[Row] | None) -> list[Wanted] | Trace:
        try:
            calls = next(self.flow) if rows is None else self.flow.send(rows)
            while not calls:
                calls = self.flow.send([])
        except StopIteration as finished:
            trace: Trace = finished.value
            trace.usage.wall_seconds = time.perf_counter() - self._started
            return trace
        self._rows = [None] * len(calls)
        return [self._wanted(place, call) for place, call in enumerate(calls)]

    def _wanted(self, place: int, call: Call) -> Wanted:
        answering = call.model or self.model
        assert isinstance(answering, TorchModel), "beside a local model, helpers are local too"
        stream = self._streams if call.stream is None else call.stream
        self._streams += 1
        row = (call.prompt, call.controllers, call.settings, call.prefix, call.parent, call.keep)
        plan = Plan(*row, stream, call.drafter)
        return Wanted(Job(self.job.problem, self.job.sample), plan, answering, place)


def run_flows(
    model: TorchModel,
    jobs: Iterable[Job],
    settings: Settings,
    start: Callable[[Job], Flow],
    policy: AttentionPolicy | None = None,
) -> Iterator[Trace]:
    """Answer jobs by flows.

    Args:
        model: the main model.
        jobs: what to answer; read lazily, at most four batches of flows at a time.
        settings: of calls that have none of their own; the batch size holds for every model.
        start: makes the flow of a job.
        policy: decides what all rows of the main model attend to and keep, None for everything.

    Yields:
        A trace for each job, as they finish.

    Raises:
        ContextOverflow: a prompt does not fit.
    """
    queues: dict[int, deque[tuple[Job, Plan]]] = {id(model): deque()}
    models = {id(model): model}
    waiting = iter(jobs)
    awaited: dict[int, tuple[Playing, int]] = {}  # by the identity of the call's own job
    running, exhausted = 0, False
    done: deque[Trace] = deque()

    def take(playing: Playing, outcome: list[Wanted] | Trace) -> None:
        nonlocal running
        if isinstance(outcome, Trace):
            done.append(outcome)
            running -= 1
            return
        for wanted in outcome:
            awaited[id(wanted.job)] = (playing, wanted.place)
            models[id(wanted.model)] = wanted.model
            queues.setdefault(id(wanted.model), deque()).append((wanted.job, wanted.plan))

    def source(queue: deque[tuple[Job, Plan]]) -> Iterator[tuple[Job, Plan] | None]:
        nonlocal running, exhausted
        while True:
            while not queue and not exhausted and running < 4 * settings.batch_size:
                job = next(waiting, None)
                if job is None:
                    exhausted = True
                    break
                running += 1
                playing = Playing(model, job, start(job))
                take(playing, playing.begin())
            yield queue.popleft() if queue else None

    while True:
        for key in list(queues):
            mine = policy if key == id(model) else None
            for row in decode_rows(models[key], source(queues[key]), settings, mine):
                playing, place = awaited.pop(id(row.job))
                take(playing, playing.answer(place, row))
                while done:
                    yield done.popleft()
        while done:
            yield done.popleft()
        if exhausted and not any(queues.values()):
            return


def account(row: Row, role: Role) -> Usage:
    """Return what a row costs the trace that it is part of.

    Args:
        row: a finished one.
        role: ``sample`` for a response that competed for the answer, ``probe`` for another stream of the main
            model, ``helper`` for one of another model.
    """
    usage = row.usage
    if role == "sample":
        return usage
    if role == "helper":
        return Usage(helper=usage.total, flops=usage.flops)
    own = usage.total - usage.helper  # what other models read of it stays theirs
    return Usage(probe=own, helper=usage.helper, forward_passes=usage.forward_passes, flops=usage.flops)


def conclude(
    chosen: Row, method: str, others: Sequence[tuple[Row, Role]] = (), events: dict[str, object] | None = None
) -> Trace:
    """Return the trace of a flow: one row's response, with the account of all.

    Args:
        chosen: the row whose response it is.
        method: the specification of the method.
        others: every other row that was decoded for it, with its role; their texts follow as side streams, but for
            those that the chosen one went on from, which it holds.
        events: what to tell reports, beside what the row's controllers noted.
    """
    trace = chosen.trace(method)
    for row, role in others:
        trace.usage = trace.usage + account(row, role)
        kind: Literal["probe", "helper"] = "helper" if role == "helper" else "probe"
        text = row.text()
        if text and not _within(row, chosen):
            trace.segments.append(Segment(kind, "answer", text))
    trace.events = {**trace.events, **(events or {})}
    return trace


def _within(row: Row, chosen: Row) -> bool:
    """Tell whether a row is the beginning of another, as one that it went on from is."""
    shared = row.prompt_ids is chosen.prompt_ids and len(row.ids) <= chosen.inherited
    return shared and chosen.ids[: len(row.ids)] == row.ids
