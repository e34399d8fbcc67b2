"""Flows over a model of text: the same tokens as with an engine, every token in the account."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import pytest

from thrifty.catalogue import Need
from thrifty.decoding.flow import Call, Flow, conclude, run_flows
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.text_flow import run_text_flows
from thrifty.errors import MissingAccess
from thrifty.methods import get_method
from thrifty.models.base import Job, Settings, TextModel, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace

SETTINGS = Settings(max_tokens=40, batch_size=3, temperature=0.8, loop_stop=False)


class Texts(TextModel):
    """A model of which only the texts are to be had, as of one on a server."""

    gives: ClassVar[Need] = Need.TEXT
    name = "texts"

    def __init__(self, model: TorchModel) -> None:
        self.model = model
        self.asked: list[list[str]] = []

    def respond(self, jobs: Iterable[Job], settings: Settings, method: str = "vanilla") -> Iterator[Trace]:
        jobs = list(jobs)
        self.asked.append([job.problem.id for job in jobs])
        return decode(self.model, jobs, settings, lambda job: Plan(self.model.render(job.problem.messages)), method)


def jobs(count: int) -> list[Job]:
    return list(jobs_for(load_task("mix").problems(limit=count, seed=5), 1))


def drafted(model: TorchModel, job: Job) -> Flow:
    """Take two samples, then ask again with the first of them before the question."""
    messages = job.problem.messages
    first = Call(model.render(messages), messages=messages)
    drafts = yield [first, first]
    again = [{"role": "user", "content": f"{drafts[0].text()[:20]} {job.problem.question}"}]
    (row,) = yield [Call(model.render(again), settings=SETTINGS.with_(max_tokens=30), messages=again)]
    assert row.stopped in ("eos", "max_tokens")
    return conclude(row, "drafted", [(drafts[0], "sample"), (drafts[1], "probe")], {"drafts": len(drafts)})


def told(traces: Iterable[Trace]) -> dict[str, object]:
    return {
        t.problem_id: (
            [(s.kind, s.ids, s.text.removesuffix("<|end|>")) for s in t.segments],
            {**vars(t.usage), "wall_seconds": 0},
            (t.method, t.stop_reason, t.closed_by, t.events),
        )
        for t in traces
    }


def test_a_flow_comes_to_the_same_as_with_an_engine(pebble64: TorchModel) -> None:
    engine = told(run_flows(pebble64, jobs(5), SETTINGS, lambda job: drafted(pebble64, job)))
    texts = Texts(pebble64)
    found = list(run_text_flows(texts, jobs(5), SETTINGS, lambda job: drafted(pebble64, job)))
    assert told(found) == engine
    assert [t.problem_id for t in found] == [job.problem.id for job in jobs(5)]
    assert [len(asked) for asked in texts.asked] == [6, 3, 4, 2]  # three flows in step, then two
    assert all(t.usage.wall_seconds > 0 for t in found)


def test_jobs_are_read_a_batch_at_a_time(pebble: TorchModel) -> None:
    read: list[str] = []

    def lazily() -> Iterator[Job]:
        for job in jobs(9):
            read.append(job.problem.id)
            yield job

    traces = run_text_flows(Texts(pebble), lazily(), SETTINGS, lambda job: drafted(pebble, job))
    next(traces)
    assert len(read) == 3


def test_a_call_may_go_to_another_model(pebble: TorchModel) -> None:
    main, other = Texts(pebble), Texts(pebble)

    def flow(job: Job) -> Flow:
        (helped,) = yield [Call(model=other, settings=SETTINGS, stream=1, messages=job.problem.messages)]
        (row,) = yield [Call(stream=0, messages=job.problem.messages)]
        return conclude(row, "helped", [(helped, "helper")])

    found = list(run_text_flows(main, jobs(2), SETTINGS, flow))
    assert (len(main.asked), len(other.asked)) == (1, 1)
    assert all("#" not in name for name in main.asked[0])
    assert all(name.endswith("#1") for name in other.asked[0])
    assert all(t.usage.helper > 0 for t in found)


def test_a_method_that_needs_only_text_runs_on_a_model_of_text(pebble64: TorchModel) -> None:
    texts = Texts(pebble64)
    for spec in ("plan-and-budget(mode=vanilla)", "plan-and-budget(mode=global_budget,level=2)"):
        method = get_method(spec)
        found = {t.problem_id: t.text for t in method.solve(texts, jobs(4), SETTINGS)}
        assert found == {t.problem_id: t.text for t in method.solve(pebble64, jobs(4), SETTINGS)}
    (planned,) = get_method("plan-and-budget(retries=0,planner_tokens=20)").solve(texts, jobs(1), SETTINGS)
    assert planned.usage.probe == planned.events["plan-and-budget"]["planner_tokens"] > 0
    assert planned.method == "plan-and-budget(planner_tokens=20,retries=0)"


ASKED = ({"role": "user", "content": "?"},)


@pytest.mark.parametrize(
    "call", [Call("a prompt"), Call(messages=ASKED, prefix="So"), Call(messages=ASKED, thought="")]
)
def test_a_call_that_wants_an_engine_is_refused(call: Call, pebble: TorchModel) -> None:
    def flow(_: Job) -> Flow:
        (row,) = yield [call]
        return conclude(row, "engine")

    with pytest.raises(MissingAccess, match="load the weights"):
        next(run_text_flows(Texts(pebble), jobs(1), SETTINGS, flow))


def test_a_method_that_needs_more_is_refused(pebble: TorchModel) -> None:
    with pytest.raises(MissingAccess, match="e2c"):
        get_method("e2c").solve(Texts(pebble), jobs(1), SETTINGS)
