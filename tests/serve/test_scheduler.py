"""Many requests in one batch: each gets what it would have got alone, and nobody pays for another's failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from serving import Wordy

from thrifty.catalogue import Need
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.row import Row
from thrifty.methods import get_method
from thrifty.methods.base import Composition, Method
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.serve.engine import Done, Piece
from thrifty.serve.errors import Refusal
from thrifty.serve.play import MOST_CALLS, Order, Play
from thrifty.serve.scheduler import Scheduler
from thrifty.serve.shown import Shown
from thrifty.traces.trace import Problem, Trace

SPECS = (
    "vanilla",
    "cap(budget=9)",
    "cgrs(delta=0.0,probe_tokens=3)+first-try",
    "concisehint(alpha=8,cap=16)",
    "s1(minimum=20)",
    "majority(samples=3,early=true)",
    "majority(samples=2)+stand",
    "stand",
    "h2o",
    "soft-thinking",
    "plan-and-budget(level=2,planner_tokens=12,retries=0)",
    "diffadapt(strategy=easy)",
    "e2c(plans=2,plan_tokens=8,select=likelihood)",
)


class Noted(Play):
    """A play that keeps what it was told."""

    def __init__(self, order: Order) -> None:
        self.events: list[Any] = []
        self.trace: Trace | None = None
        super().__init__(order, self.events.append)

    def conclude(self, trace: Trace) -> None:
        self.trace = trace
        super().conclude(trace)

    def text(self, channel: str) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Piece) and e.channel == channel)


def play(
    model: TorchModel, method: str | Composition, question: str = "1 + 1", sample: int = 0, **settings: Any
) -> Noted:
    composition = get_method(method) if isinstance(method, str) else method
    asked = Problem.ask(question)
    tokens = len(model.encode_prompt(model.render(asked.messages)))
    return Noted(Order(composition, Settings(**settings), asked, None, tokens, sample))


def drain(scheduler: Scheduler, most: int = 3000) -> None:
    for _ in range(most):
        if not scheduler.plays:
            return
        scheduler.step()
    raise AssertionError("the requests do not end")


def ids(trace: Trace) -> list[tuple[str, tuple[int, ...]]]:
    return [(segment.kind, segment.ids) for segment in trace.segments]


def shown(model: TorchModel, trace: Trace) -> dict[str, str]:
    texts, filtered = {"thinking": "", "answer": ""}, Shown(model)
    told = [filtered.feed(s.phase, s.ids) for s in trace.segments if s.kind not in ("probe", "helper")]
    for piece in [piece for pieces in told for piece in pieces] + filtered.end():
        texts[piece.channel] += piece.text
    return texts


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_request_gets_the_tokens_that_it_would_get_alone(toy: TorchModel, temperature: float) -> None:
    scheduler = Scheduler(toy, size=5)
    settings = {"max_tokens": 48, "temperature": temperature, "seed": 11}
    plays: list[Noted] = []
    for number, spec in enumerate(SPECS * 2):  # they come while others are at work
        plays.append(play(toy, spec, f"{number} + 2", sample=number % 3, **settings))
        scheduler.start(plays[-1])
        scheduler.step()
        scheduler.step()
    drain(scheduler)
    for number, one in enumerate(plays):
        job = Job(Problem.ask(f"{number} + 2"), number % 3)
        (alone,) = get_method(one.order.composition.spec).solve(toy, [job], Settings(**settings))
        assert one.trace is not None, one.events
        assert ids(one.trace) == ids(alone), one.order.composition.spec
        done = one.events[-1]
        assert isinstance(done, Done)
        assert done.completion_tokens == alone.usage.generated + alone.usage.latent_steps
        assert done.usage.total == alone.usage.total
        assert done.exit_reason == alone.exit_reason
        assert {channel: one.text(channel) for channel in ("thinking", "answer")} == shown(toy, alone)


def test_a_cancelled_request_writes_at_most_two_tokens_more() -> None:
    model = Wordy.make()
    scheduler = Scheduler(model, size=4)
    one, other = play(model, "vanilla", max_tokens=200), play(model, "vanilla", "2 + 2", max_tokens=200)
    scheduler.start(one)
    scheduler.start(other)
    for _ in range(10):
        scheduler.step()
    (row,) = one.rows.values()
    written = len(row.ids)
    assert written == 10
    one.cancelled = True
    scheduler.step()
    scheduler.step()
    assert one not in scheduler.plays
    assert len(row.ids) <= written + 2
    done = one.events[-1]
    assert isinstance(done, Done)
    assert (done.exit_reason, done.usage.thinking, done.usage.prompt) == ("cancelled", written, done.prompt_tokens)
    drain(scheduler)
    assert other.events[-1].usage.generated == 200


def test_a_cancelled_request_takes_its_waiting_calls_with_it() -> None:
    model = Wordy.make()
    scheduler = Scheduler(model, size=2)
    one = play(model, "majority(samples=9)", max_tokens=200)
    scheduler.start(one)
    scheduler.step()
    assert len(one.rows) == 9
    one.cancelled = True
    scheduler.step()
    scheduler.step()
    assert not scheduler.plays
    assert one.events[-1].usage.generated <= 2 * 3
    assert one.events[-1].exit_reason == "cancelled"


def test_finishing_closes_the_thinking_as_a_cap_does() -> None:
    model = Wordy.make()
    scheduler = Scheduler(model, size=2)
    one = play(model, "vanilla", max_tokens=100)
    scheduler.start(one)
    for _ in range(12):
        scheduler.step()
    one.finishing = True
    drain(scheduler)
    (alone,) = get_method("cap(budget=12)").solve(model, [Job(Problem.ask("1 + 1"))], Settings(max_tokens=100))
    assert one.trace is not None
    assert ids(one.trace) == ids(alone)
    assert one.events[-1].exit_reason == "max_tokens"
    assert one.trace.closed_by == "finish"


def test_pieces_come_while_the_response_is_written() -> None:
    model = Wordy.make()
    scheduler = Scheduler(model, size=2)
    one = play(model, "cap(budget=5)", max_tokens=40)
    scheduler.start(one)
    seen = []
    while scheduler.plays:
        scheduler.step()
        seen.append(len(one.events))
    assert seen[3] == 4
    done = one.events[-1]
    answered = sum(event.tokens for event in one.events[:-1] if event.channel == "answer")
    assert answered == done.completion_tokens - done.reasoning_tokens


def test_what_chooses_among_samples_is_told_at_its_end() -> None:
    model = Wordy.make()
    scheduler = Scheduler(model, size=8)
    one = play(model, "majority(samples=3)", max_tokens=40)
    scheduler.start(one)
    for _ in range(39):
        scheduler.step()
        assert not one.events
    drain(scheduler)
    assert isinstance(one.events[0], Piece)
    assert one.events[-1].usage.generated == 120


@dataclass(frozen=True, kw_only=True)
class Faulty(Method):
    """A method with a fault that shows at some token."""

    slug: ClassVar[str] = "faulty"
    needs: ClassVar[Need] = Need.TEXT
    at: int = 7

    def controllers(self, model: TorchModel) -> list[Controller]:
        return [_Fault(self.at)]


class _Fault(Controller):
    def __init__(self, at: int) -> None:
        self.at = at

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        if any(len(row.ids) == self.at for row in rows):
            raise IndexError("list index out of range")


def test_who_stands_beside_a_failing_request_gets_the_same_answer() -> None:
    model = Wordy.make()
    scheduler = Scheduler(model, size=8)
    settings = {"max_tokens": 40, "temperature": 1.0}
    good = [play(model, spec, f"{i} + 1", **settings) for i, spec in enumerate(("vanilla", "cap(budget=6)", "stand"))]
    bad = play(model, Composition([Faulty()]), **settings)
    for one in (*good, bad):
        scheduler.start(one)
    drain(scheduler)
    assert [type(event) for event in bad.events[-1:]] == [Refusal]
    assert bad.events[-1].status == 500
    assert "list index" not in bad.events[-1].message
    spent = bad.events[-1].done
    assert (spent.exit_reason, spent.usage.generated) == ("broken", Faulty.at)
    assert spent.usage.probe > Faulty.at, "it was decoded twice"
    for i, one in enumerate(good):
        (alone,) = one.order.composition.solve(model, [Job(Problem.ask(f"{i} + 1"))], Settings(**settings))
        assert one.events[-1].usage.generated == alone.usage.generated
        assert one.events[-1].usage.total > alone.usage.total, "the attempt that failed counts"
        assert {channel: one.text(channel) for channel in ("thinking", "answer")} == shown(model, alone)
        assert isinstance(one.events[-1], Done)
    after = play(model, "vanilla", **settings)
    scheduler.start(after)
    drain(scheduler)
    assert isinstance(after.events[-1], Done)


def test_a_method_that_wants_too_many_calls_is_refused() -> None:
    model = Wordy.make()
    scheduler = Scheduler(model, size=2)
    one = play(model, f"majority(samples={MOST_CALLS + 1})", max_tokens=20)
    scheduler.start(one)
    assert not scheduler.plays
    assert isinstance(one.events[-1], Refusal)
    assert one.events[-1].status == 400


def test_lanes_are_given_back() -> None:
    model = Wordy.make()
    scheduler = Scheduler(model, size=2)
    for spec in ("vanilla", "h2o", "sliding-window"):
        scheduler.start(play(model, spec, max_tokens=12))
    drain(scheduler)
    scheduler.step()
    assert not scheduler._lanes
    assert not scheduler._awaited


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    model = Wordy.make()
    scheduler = Scheduler(model, size=2)
    asked = Problem.ask("1 + 1")
    order = Order(get_method("tldr+cap(budget=4)"), Settings(max_tokens=20), asked, None, 0, logprobs=2)
    one = Noted(order)
    scheduler.start(one)
    drain(scheduler)
    assert one.trace is not None
    written = [token for segment in one.trace.segments for token in segment.ids]
    prompt = model.encode_prompt(model.render(asked.messages))
    from thrifty.decoding.session import Session

    session = Session(model)
    session.add([prompt + written[:-1]])
    expected = torch.log_softmax(session.logits[0], -1)[written[-1]]
    told = [logprob for event in one.events[:-1] for logprob in event.logprobs]
    assert told[-1].logprob == pytest.approx(float(expected), abs=1e-9)
    assert told[-1].data == model.texts.bytes_of(written[-1])
    assert len(told[-1].top) == 2
