"""One request at work: from the flow that answers it to the events that its client is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

from thrifty.decoding.controller import Controller
from thrifty.decoding.flow import Call, Flow, Playing, Wanted, account
from thrifty.decoding.row import Row
from thrifty.methods.base import Composition, Stage, stage_of
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.serve.engine import BROKEN, CANCELLED, Channel, Done, Event, Finish, Piece, TokenLogprob
from thrifty.serve.errors import Refusal
from thrifty.serve.shown import Shown
from thrifty.traces.trace import Problem, Segment, Trace, Usage

MOST_CALLS = 256
"""Calls that the method of one request may make in all."""
MOST_EXTRA = 16
"""Tokens in which a model is to answer after all, where the limits of a method left no room for that."""
_CUT = ("max_tokens", "context", "loop")


@dataclass(frozen=True)
class Order:
    """What is to be answered, and how.

    Attributes:
        composition: the methods that answer.
        settings: how to generate.
        problem: what is asked.
        prompt: raw text to be continued, None to render the conversation.
        prompt_tokens: of the conversation as the model reads it.
        sample: index among the samples of the request.
        logprobs: alternatives to report at each token of the answer, None for nothing.
        closing: what ends the thinking, if it stands behind the prompt.
        tight: whether there is no room to think, so that it does.
    """

    composition: Composition
    settings: Settings
    problem: Problem
    prompt: str | None
    prompt_tokens: int
    sample: int = 0
    logprobs: int | None = None
    closing: str = ""
    tight: bool = False


@dataclass(eq=False)
class Play:
    """An order at work.

    Attributes:
        order: what is to be answered.
        emit: told every event, in order; after a `Done` or a `Refusal` nothing more.
        rows: that are being decoded for it, by identity.
        finishing: whether its thinking is to be closed.
        cancelled: whether nobody wants it any more.
        alone: whether it is decoded apart from others, for it may be the one that fails.
        tight: whether what would open a think block is text.
    """

    order: Order
    emit: Callable[[Event | Refusal], None]
    rows: dict[int, Row] = field(default_factory=dict, init=False)
    finishing: bool = field(default=False, init=False)
    cancelled: bool = field(default=False, init=False)
    alone: bool = field(default=False, init=False)
    tight: bool = field(default=False, init=False)
    _playing: Playing | None = field(default=None, init=False)
    _shown: Shown = field(init=False)
    _told: dict[Channel, str] = field(default_factory=lambda: {"thinking": "", "answer": ""}, init=False)
    _place: dict[Channel, int] = field(init=False)
    _extra: list[Segment] = field(default_factory=list, init=False)
    _seen: int = field(default=0, init=False)
    _reread: int = field(default=0, init=False)
    _calls: int = field(default=0, init=False)
    _spent: Usage = field(default_factory=Usage, init=False)
    _lost: Usage = field(default_factory=Usage, init=False)
    _ended: bool = field(default=False, init=False)

    @property
    def begun(self) -> bool:
        """Whether it waits no longer."""
        return self._playing is not None

    def begin(self, model: TorchModel, made: Sequence[Controller] | None, watch: Controller) -> list[Wanted] | Trace:
        """Start the flow, perhaps anew; return its first calls.

        Args:
            model: the main model.
            made: steering controllers that serve others too, None to make them.
            watch: is to see the tokens that may be shown as they come.

        Raises:
            Refusal: it makes too many calls.
        """
        composition, settings = self.order.composition, self.order.settings
        stage = stage_of(composition.parts, model, settings, [watch] if composition.streams else [], made)
        job = Job(self.order.problem, self.order.sample)
        flow = stage.flow.flow(stage, job) if stage.flow else self._plain(stage, job)
        self._seen = self._reread = self._calls = 0
        self._extra, self.tight = [], self.order.tight
        spent = self._spent  # for an attempt that failed
        own = spent.total - spent.helper
        self._spent = self._lost = Usage(
            probe=own, helper=spent.helper, forward_passes=spent.forward_passes, flops=spent.flops
        )
        self._show_from_the_start(model)
        self._playing = Playing(model, job, self._answered(stage, job, flow))
        return self._counted(self._playing.begin())

    def answer(self, place: int, row: Row) -> list[Wanted] | Trace:
        """Hand a finished row to the flow; return its next calls.

        Raises:
            Refusal: it makes too many calls.
        """
        assert self._playing is not None, "only a play that has begun has rows"
        return self._counted(self._playing.answer(place, row))

    def _plain(self, stage: Stage, job: Job) -> Flow:
        order = self.order
        if order.prompt is None:
            prompt = stage.render(job)
        else:
            prompt = order.prompt
            for part in stage.parts:
                prompt = part.prompt(stage.model, job, prompt)
        (row,) = yield [stage.call(prompt + order.closing if order.tight else prompt)]
        return row.trace(stage.method)

    def _answered(self, stage: Stage, job: Job, flow: Flow) -> Flow:
        """Play a flow, and have the model answer in a few tokens more where limits left the thinking all the room."""
        trace = yield from flow
        order, model = self.order, stage.model
        if trace.stop_reason not in _CUT or trace.answer_text.strip() or not model.think.thinks:
            return trace
        self.tight = True
        few = max(1, min(order.settings.reserve, MOST_EXTRA))
        settings = order.settings.with_(max_tokens=few, answer_reserve=None, thinking_budget=None)
        prompt = model.render(job.problem.messages) if order.prompt is None else order.prompt
        (row,) = yield [Call(prompt + order.closing, settings=settings)]
        late = row.trace(stage.method)
        self._extra = late.segments
        trace.segments, trace.usage = [*trace.segments, *late.segments], trace.usage + late.usage
        trace.stop_reason, trace.closed_by = late.stop_reason, trace.closed_by or "limit"
        return trace

    def _counted(self, outcome: list[Wanted] | Trace) -> list[Wanted] | Trace:
        if isinstance(outcome, list):
            self._calls += len(outcome)
            if self._calls > MOST_CALLS:
                spec = self.order.composition.spec
                raise Refusal(f"method {spec!r} makes more than {MOST_CALLS} calls for one request: lower its options")
        return outcome

    def see(self, row: Row, logprobs: Sequence[TokenLogprob]) -> None:
        """Show what a row has written since it was last seen.

        Args:
            row: the response.
            logprobs: of its newest token, where they are wanted.
        """
        if row.usage.reread != self._reread or not self._seen:
            # what was shown may stand elsewhere now: asides have gone in between
            self._reread, self._seen = row.usage.reread, 0
            self._show_from_the_start(row.model, bool(row.begun.closed))
        for _, phase, tokens in row.runs(self._seen):
            self._show(self._shown.feed(phase, tokens, logprobs if len(logprobs) == len(tokens) else ()))
        self._seen = len(row.ids)
        if self._shown.stopped and row.stopped is None:
            row.stop("stop")

    def conclude(self, trace: Trace) -> None:
        """Show what is still held back, and the account."""
        for segment in self._extra if self.order.composition.streams else trace.segments:
            if segment.kind not in ("probe", "helper"):
                self._show(self._shown.feed(segment.phase, segment.ids))
        self._show(self._shown.end())
        cut = trace.stop_reason in _CUT and not self._shown.stopped
        self._end(trace.usage + self._lost, "length" if cut else "stop", trace)

    def settle(self, row: Row) -> None:
        """Take note of what a finished row has spent, should the request not come to its end."""
        own = self._playing is not None and row.model is self._playing.model
        self._spent = self._spent + account(row, "sample" if own else "helper")

    def lose(self, row: Row) -> None:
        """Take note of what a row has spent that does not come to its end."""
        if row.ids:
            row.settle()
            self.settle(row)

    def give_up(self) -> None:
        """End it where it stands."""
        if self._playing is not None:
            self._playing.flow.close()
        if not self._ended:
            self._end(self._spent, "stop", None)

    def fail(self, error: Refusal) -> None:
        """End it with an error, which tells what it has taken, rows at work included."""
        if self._ended:
            return
        for row in self.rows.values():
            self.lose(row)
        own = copy(error)  # others may end with the same
        if self._spent.total:
            own.done = self._done(self._spent, "stop", None, BROKEN)
        self._ended = True
        self.emit(own)

    def _show_from_the_start(self, model: TorchModel, closed: bool = False) -> None:
        self._shown = Shown(model, self.order.settings.stop, closed)
        self._place = {"thinking": 0, "answer": 0}

    def _show(self, pieces: Sequence[Piece]) -> None:
        """Tell the client what it has not been told yet.

        Raises:
            Refusal: it was told something else.
        """
        for piece in pieces if not (self.cancelled or self._ended) else ():
            told, place = self._told[piece.channel], self._place[piece.channel]
            self._place[piece.channel] += len(piece.text)
            known = min(len(piece.text), len(told) - place)
            if self.alone and told[place : place + known] != piece.text[:known]:
                raise Refusal("the engine failed, and another attempt went another way: try again", 500, "engine_error")
            if known < len(piece.text):
                self._told[piece.channel] += piece.text[known:]
                self.emit(replace(piece, text=piece.text[known:]))

    def _end(self, usage: Usage, finish: Finish, trace: Trace | None) -> None:
        self._ended = True
        self.emit(self._done(usage, finish, trace, trace.exit_reason if trace else CANCELLED))

    def _done(self, usage: Usage, finish: Finish, trace: Trace | None, exit_reason: str) -> Done:
        answer = usage.answer
        for segment in trace.segments if trace else ():
            if segment.phase == "answer" and segment.kind in ("injected", "latent"):
                answer += len(segment.ids)
        return Done(
            finish=finish,
            usage=usage,
            prompt_tokens=self.order.prompt_tokens,
            reasoning_tokens=usage.generated + usage.latent_steps - answer,
            method=self.order.composition.spec,
            exit_reason=exit_reason,
            seed=self.order.settings.seed,
            notes=trace.events if trace else {},
        )
