"""Flows: many calls for a problem, the same tokens as one at a time, every token in the account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.flow import Call, Flow, conclude, run_flows
from thrifty.decoding.loop import Plan, decode, decode_rows
from thrifty.decoding.row import Row
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace

SETTINGS = Settings(max_tokens=60, batch_size=5, temperature=0.8, loop_stop=False)


def jobs(count: int) -> list[Job]:
    return list(jobs_for(load_task("mix").problems(limit=count, seed=5), 1))


def ids_of(trace: Trace) -> tuple[int, ...]:
    return tuple(i for s in trace.segments for i in s.ids)


class StopAt(Controller):
    """Stop every row once it has a number of tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if len(row.ids) >= self.tokens:
                row.stop("part")


class StopAtOnce(Controller):
    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.stop("read")


class LastStates(Controller):
    """Remember the states of the last layer, one for each position seen."""

    def __init__(self, layer: int) -> None:
        self.taps = (layer,)
        self.seen: dict[str, list[torch.Tensor]] = {}

    def see_hidden(self, rows: Sequence[Row], hidden: Mapping[int, torch.Tensor]) -> None:
        for row, state in zip(rows, hidden[self.taps[0]], strict=True):
            self.seen.setdefault(row.job.problem.id, []).append(state)


def test_one_plain_call_is_vanilla(toy: TorchModel) -> None:
    def flow(job: Job) -> Flow:
        (row,) = yield [Call(toy.render(job.problem.messages))]
        return conclude(row, "test")

    plain = decode(toy, jobs(7), SETTINGS, lambda job: Plan(toy.render(job.problem.messages)), "test")
    flown = run_flows(toy, jobs(7), SETTINGS, flow)
    assert {t.problem_id: ids_of(t) for t in plain} == {t.problem_id: ids_of(t) for t in flown}


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_row_gone_on_from_writes_what_it_would_have_written(toy: TorchModel, size: int) -> None:
    """The parts of a response, joined, are the response that is decoded in one go, at its full account."""
    settings = SETTINGS.with_(batch_size=size)

    def parts(job: Job) -> Flow:
        (first,) = yield [Call(toy.render(job.problem.messages), [StopAt(20)], keep=True)]
        (second,) = yield [Call(parent=first, stream=0, keep=True, controllers=[StopAt(33)])]
        (third,) = yield [Call(parent=second, stream=0)]
        assert third.inherited == 33
        assert third.ids[:33] == second.ids
        return conclude(third, "test", [(first, "sample"), (second, "sample")])

    whole = decode(toy, jobs(6), settings, lambda job: Plan(toy.render(job.problem.messages)), "test")
    plain = {t.problem_id: t for t in whole}
    for trace in run_flows(toy, jobs(6), settings, parts):
        expected = plain[trace.problem_id]
        main = tuple(i for s in trace.segments if s.kind != "probe" for i in s.ids)
        assert main == ids_of(expected)
        for count in ("prompt", "thinking", "answer", "injected", "total"):
            assert getattr(trace.usage, count) == getattr(expected.usage, count)
        assert trace.usage.flops == pytest.approx(expected.usage.flops, rel=0.01)


class StopAtEach(Controller):
    """Stop at every token that nobody has forced."""

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if not row.forced:
                row.stop("part")


@pytest.mark.parametrize(
    ("limits", "ending"),
    [
        ({"stop": ("e",)}, ("stop", "limit")),
        ({"thinking_budget": 10}, ("max_tokens", "budget")),
        ({"answer_reserve": 0}, ("max_tokens", None)),
    ],
)
def test_limits_hold_for_what_goes_on_from_a_stop_that_came_before_them(
    toy: TorchModel, limits: dict[str, object], ending: tuple[str, str | None]
) -> None:
    """A response in parts of one token each ends where it would have ended in one go, and for the same reason."""
    settings = SETTINGS.with_(max_tokens=48, loop_stop=True, **limits)

    def parts(job: Job) -> Flow:
        rows = yield [Call(toy.render(job.problem.messages), [StopAtEach()], keep=True)]
        while rows[-1].stopped == "part":
            rows += yield [Call(parent=rows[-1], stream=0, controllers=[StopAtEach()], keep=True)]
        return conclude(rows[-1], "test", [(row, "sample") for row in rows[:-1]])

    whole = decode(toy, jobs(6), settings, lambda job: Plan(toy.render(job.problem.messages)), "test")
    plain = {t.problem_id: t for t in whole}
    assert ending in {(t.stop_reason, t.closed_by) for t in plain.values()}
    for trace in run_flows(toy, jobs(6), settings, parts):
        expected = plain[trace.problem_id]
        assert tuple(i for s in trace.segments if s.kind != "probe" for i in s.ids) == ids_of(expected)
        assert (trace.stop_reason, trace.closed_by) == (expected.stop_reason, expected.closed_by)


def test_children_share_their_parent_and_differ_by_their_streams(toy: TorchModel) -> None:
    def flow(job: Job) -> Flow:
        (root,) = yield [Call(toy.render(job.problem.messages), [StopAt(5)], keep=True)]
        children = yield [Call(parent=root) for _ in range(4)]
        assert len({tuple(c.ids) for c in children}) == 4
        assert all(c.ids[:5] == root.ids for c in children)
        written = 5 + sum(len(c.ids) - 5 for c in children)
        others = [(root, "sample"), *((c, "sample") for c in children[1:])]
        return conclude(children[0], "test", others, {"written": written})

    for trace in run_flows(toy, jobs(3), SETTINGS, flow):
        assert trace.usage.generated == trace.events["written"]


def test_a_row_stopped_in_begin_costs_its_prompt_alone(toy: TorchModel) -> None:
    def flow(job: Job) -> Flow:
        (read,) = yield [Call(toy.render(job.problem.messages), [StopAtOnce()])]
        assert not read.ids
        assert read.stopped == "read"
        (row,) = yield [Call(toy.render(job.problem.messages), stream=0)]
        return conclude(row, "test", [(read, "probe")])

    plain = decode(toy, jobs(4), SETTINGS, lambda job: Plan(toy.render(job.problem.messages)), "test")
    expected = {t.problem_id: t for t in plain}
    for trace in run_flows(toy, jobs(4), SETTINGS, flow):
        vanilla = expected[trace.problem_id]
        assert [s.ids for s in trace.segments if s.kind != "probe"] == [s.ids for s in vanilla.segments]
        assert trace.usage.probe == vanilla.usage.prompt


def test_a_prefix_is_read_with_the_prompt_and_counts_as_injected(toy: TorchModel) -> None:
    def flow(job: Job) -> Flow:
        (row,) = yield [Call(toy.render(job.problem.messages), prefix="I know.\n</think>\n\n")]
        assert row.phase == "answer"
        assert row.text().startswith("I know.\n</think>\n\n")
        return conclude(row, "test")

    length = len(toy.encode("I know.\n</think>\n\n"))
    for trace in run_flows(toy, jobs(2), SETTINGS, flow):
        assert trace.usage.injected == length
        assert trace.usage.forward_passes == trace.usage.generated - length  # the prefix costs no pass of its own
        assert trace.closed_by == "model"
        assert trace.segments[0].kind == "injected"


def test_a_helper_model_is_called_and_charged(toy: TorchModel, pebble64: TorchModel) -> None:
    def flow(job: Job) -> Flow:
        (thought,) = yield [Call(pebble64.render(job.problem.messages), [StopAt(10)], model=pebble64)]
        (row,) = yield [Call(toy.render(job.problem.messages), stream=0)]
        return conclude(row, "test", [(thought, "helper")], {"thought": len(thought.ids)})

    for trace in run_flows(toy, jobs(9), SETTINGS, flow):
        assert trace.usage.helper == trace.usage.prompt + 10  # both read the same prompt
        assert trace.events["thought"] == 10
        assert trace.segments[-1].kind == "helper"
        assert trace.segments[-1].text


def test_hidden_states_arrive_for_the_prompt_and_every_token(toy: TorchModel) -> None:
    watching = LastStates(toy.layers)
    settings = SETTINGS.with_(max_tokens=12, batch_size=2)
    plans = [(job, Plan(toy.render(job.problem.messages), [watching])) for job in jobs(5)]
    rows = list(decode_rows(toy, plans, settings))
    for row in rows:
        seen = watching.seen[row.job.problem.id]
        text = torch.tensor([[*row.prompt_ids, *row.ids[:-1]]])
        states = toy.network(text, output_hidden_states=True).hidden_states
        # the last entry of hidden_states comes after the final norm: compare the one before, by the tap's own layer
        with toy.tap([toy.layers]) as tapped:
            toy.network(text)
        expected = tapped[toy.layers][0, len(row.prompt_ids) - 1 :]
        assert len(states) == toy.layers + 1
        torch.testing.assert_close(torch.stack(seen), expected)


def test_flows_of_any_number_of_calls_are_the_same_at_any_batch_size(toy: TorchModel) -> None:
    def flow(job: Job) -> Flow:
        count = 1 + len(job.problem.question) % 4
        rows = yield [Call(toy.render(job.problem.messages), [StopAt(9 + 3 * i)]) for i in range(count)]
        longest = max(rows, key=lambda row: len(row.ids))
        return conclude(longest, "test", [(row, "sample") for row in rows if row is not longest])

    results = [
        {t.problem_id: (ids_of(t), t.usage.total) for t in run_flows(toy, jobs(12), SETTINGS.with_(batch_size=n), flow)}
        for n in (1, 4, 32)
    ]
    assert results[0] == results[1] == results[2]
