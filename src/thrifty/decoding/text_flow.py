"""Flows over a model that gives only text, such as one on a server: the same methods, without an engine.

A flow that needs only text names the ``messages`` of its calls and reads of a finished row its `text`, `trace`,
`usage` and `stopped`: a `Reply` has those, too. Rows to go on from, prefixes and controllers don't exist here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import cast

from thrifty.decoding.flow import Call, Flow
from thrifty.decoding.row import Row
from thrifty.errors import MissingAccess
from thrifty.models.base import Job, Settings, TextModel
from thrifty.traces.answers import extract_answer
from thrifty.traces.trace import Trace, Usage


@dataclass(frozen=True)
class Reply:
    """A finished call, as a flow sees it.

    Attributes:
        response: what the model answered.
        prompt_ids: none, for only the server knows them.
    """

    response: Trace
    prompt_ids: list[int] = field(default_factory=list)

    @property
    def usage(self) -> Usage:
        """The account."""
        return self.response.usage

    @property
    def stopped(self) -> str:
        """Why it ended."""
        return self.response.stop_reason

    def text(self) -> str:
        """Return the text of the response."""
        return self.response.text

    def trace(self, method: str) -> Trace:
        """Return a record of its own for a method."""
        mine = self.response
        answer = mine.answer or (extract_answer(mine.answer_text) if mine.closed_by else None)
        return replace(mine, method=method, segments=list(mine.segments), events=dict(mine.events), answer=answer)


@dataclass
class _Playing:
    job: Job
    flow: Flow
    calls: Sequence[Call] = ()
    replies: list[Reply | None] = field(default_factory=list)
    streams: int = 0
    started: float = field(default_factory=time.perf_counter)

    def advance(self, replies: list[Reply] | None) -> Trace | None:
        """Hand the replies over; return the trace if the flow has ended with them."""
        try:
            # what a Reply lacks of a Row, a flow that needs only text doesn't ask for
            self.calls = next(self.flow) if replies is None else self.flow.send(cast("list[Row]", replies))
            while not self.calls:
                self.calls = self.flow.send([])
        except StopIteration as finished:
            trace: Trace = finished.value
            trace.usage.wall_seconds = time.perf_counter() - self.started
            return trace
        self.replies = [None] * len(self.calls)
        return None


def run_text_flows(
    model: TextModel, jobs: Iterable[Job], settings: Settings, start: Callable[[Job], Flow]
) -> Iterator[Trace]:
    """Answer jobs by flows; see `thrifty.decoding.flow.run_flows`.

    As many flows as fit a batch play in step: the calls of all go out together, and so do those that follow.

    Args:
        model: answers the calls that name no other.
        jobs: what to answer; read lazily, a batch at a time.
        settings: of calls that have none of their own; the batch size holds for every model.
        start: makes the flow of a job.

    Yields:
        A trace for each job.

    Raises:
        MissingAccess: a call has no messages, or wants what only an engine can do.
    """
    waiting = iter(jobs)
    while playing := [_Playing(job, start(job)) for job in islice(waiting, settings.batch_size)]:
        answered: list[Reply] | None = None
        while playing:
            still: list[_Playing] = []
            for state in playing:
                answered = [reply for reply in state.replies if reply] if state.calls else None
                if trace := state.advance(answered):
                    yield trace
                else:
                    still.append(state)
            playing = still
            _answer(model, playing, settings)


def _answer(model: TextModel, playing: Sequence[_Playing], settings: Settings) -> None:
    """Fill in the replies to what the flows ask."""
    asked: dict[tuple[TextModel, Settings], list[Job]] = {}
    places: dict[tuple[TextModel, str, int], tuple[_Playing, int]] = {}
    for state in playing:
        problem, sample = state.job.problem, state.job.sample
        for i, call in enumerate(state.calls):
            answering = call.model or model
            assert isinstance(answering, TextModel), "beside a model of text, helpers give text too"
            beyond = call.prefix or call.parent or call.controllers
            if not call.messages or beyond or (call.thought is not None and not answering.follows):
                raise MissingAccess(
                    f"the method asks for more than a reply to messages, which is all that {answering.name!r} gives: "
                    "load the weights here, as in --model FOLDER"
                )
            stream = state.streams if call.stream is None else call.stream
            state.streams += 1
            name = f"{problem.id}#{stream}" if stream else problem.id  # the seed of a request follows from it
            asking = replace(problem, id=name, messages=tuple(call.messages))
            job = Job(asking, sample, call.thought, call.optional)
            its_settings = (call.settings or settings).with_(batch_size=settings.batch_size)
            asked.setdefault((answering, its_settings), []).append(job)
            places[answering, name, sample] = (state, i)
    for (answering, its_settings), jobs in asked.items():
        for trace in answering.respond(jobs, its_settings):
            state, i = places[answering, trace.problem_id, trace.sample]
            trace.problem_id = state.job.problem.id
            state.replies[i] = Reply(trace)
