"""The decode loop under a policy: drafts, probes, calls that go on from others and rewritten pasts change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from evictions import POLICIES, newest
from thrifty.decoding.batch import DecodeBatch
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.draft import Draft
from thrifty.decoding.flow import Call, Flow, conclude, run_flows
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.probe import probe_answers
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.models.attention import AttentionPolicy
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem, Trace

PLAIN = Settings(max_tokens=40, answer_reserve=0, loop_stop=False, batch_size=3)


def jobs(count: int) -> list[Job]:
    return list(jobs_for(load_task("mix").problems(limit=count, seed=5), 1))


def run(
    model: TorchModel,
    policy: AttentionPolicy | None,
    controllers: Sequence[Controller] = (),
    settings: Settings = PLAIN,
    drafter: Any = None,
) -> dict[str, Trace]:
    def plan(job: Job) -> Plan:
        return Plan(model.render(job.problem.messages), controllers, drafter=drafter)

    return {t.problem_id: t for t in decode(model, jobs(3), settings, plan, "test", policy)}


def shown(traces: dict[str, Trace]) -> dict[str, Any]:
    return {
        key: ([i for s in trace.segments if s.kind != "probe" for i in s.ids], trace.events)
        for key, trace in traces.items()
    }


class Repeats:
    """Drafts what a run without drafts wrote, or something else."""

    def __init__(self, texts: dict[str, list[int]], wrong: bool) -> None:
        self.texts, self.wrong = texts, wrong
        self.drafted = 0

    def propose(self, rows: Sequence[Row]) -> list[Draft]:
        ahead = [self.texts[row.job.problem.id][len(row.ids) :][:5] for row in rows]
        return [Draft.chain([token ^ self.wrong for token in tokens]) for tokens in ahead]

    def observe(self, rows: Sequence[Row], written: Sequence[int], probabilities: Tensor) -> None:
        pass

    def accepted(self, row: Row, drafted: int, accepted: int) -> None:
        self.drafted += accepted


@POLICIES
@pytest.mark.parametrize("wrong", [False, True])
def test_drafts_change_neither_tokens_nor_evictions(toy: TorchModel, make: Any, wrong: bool) -> None:
    plain = shown(run(toy, make(window=4)))
    drafter = Repeats({key: ids for key, (ids, _) in plain.items()}, wrong)
    drafted = run(toy, make(window=4), drafter=drafter)
    assert shown(drafted) == plain
    assert (drafter.drafted > 0) != wrong
    assert all(t.events[make().name]["evictions"] > 3 for t in drafted.values())


class ProbeEach(Controller):
    """Asks every row for an answer at every fifth token."""

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        if due := [row for row in rows if len(row.ids) % 5 == 0]:
            probe_answers(batch, due, "\\boxed{", False, 6)


@POLICIES
def test_probes_leave_their_rows_alone(toy: TorchModel, make: Any) -> None:
    plain, probed = run(toy, make()), run(toy, make(), [ProbeEach()])
    assert shown(plain) == shown(probed)
    assert all(trace.usage.probe >= 16 for trace in probed.values())


class StopAt(Controller):
    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if len(row.ids) == 17:
                row.stop("part")


@POLICIES
def test_a_row_that_is_gone_on_from_is_as_one_in_one_go(toy: TorchModel, make: Any) -> None:
    def flow(job: Job) -> Flow:
        (first,) = yield [Call(toy.render(job.problem.messages), [StopAt()], keep=True)]
        (second,) = yield [Call(parent=first, stream=0)]
        return conclude(second, "test", [(first, "sample")])

    parts = {t.problem_id: t for t in run_flows(toy, jobs(3), PLAIN, flow, make())}
    assert shown(parts) == shown(run(toy, make()))


class Insert(Controller):
    """Puts a text into the past of a row, once."""

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if len(row.ids) == 20:
                batch.rewrite(row, 6, [("So ", True), (row.ids[6:], False)])


def test_a_past_that_was_evicted_is_read_again_and_charged(toy: TorchModel) -> None:
    """Once all is read again the row is as one whose prompt was all of it, and evicts on from there."""
    policy = newest(window=4, budget=30)
    ids = toy.encode("1 2 3 4 5 6 7 8 9 10 11 12")
    row = Row(Job(Problem.ask("2 + 5?")), PLAIN, toy, 7, ids, toy.tracker.start(""))
    batch = DecodeBatch(toy, policy)
    batch.admit([row], [[Insert()]])
    prompt = len(row.prompt_ids)
    for _ in range(19):
        batch.step()
    assert batch.session.held.rows[0].evicted
    batch.step()
    so = len(toy.encode("So "))
    assert row.usage.reread == 14 + prompt + 6, "what was replaced, and what was read again before it"
    assert batch.session.positions == [prompt + len(row.ids)]
    fresh = Session(toy, policy)
    fresh.add([[*row.prompt_ids, *row.ids[:-1]]])
    fresh.append(torch.tensor(row.ids[-1:]))
    torch.testing.assert_close(batch.session.logits[0], fresh.logits[0], rtol=1e-9, atol=1e-10)
    evictions = batch.session.held.rows[0].evictions
    for _ in range(8):
        batch.step()
    assert batch.session.held.rows[0].evictions == evictions + 2
    assert len(row.ids) == 28 + so
