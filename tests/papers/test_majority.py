"""Majority: what is elected, what it costs, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import pytest

from thrifty.catalogue import Need
from thrifty.decoding.loop import Plan, decode
from thrifty.errors import MissingAccess, ThriftyError
from thrifty.methods import get_method
from thrifty.models.base import Job, Model, Settings, TextModel, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.selection import vote
from thrifty.traces.trace import Trace


def solve(model: TorchModel, spec: str, count: int = 4, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 150, **values})
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def response(trace: Trace) -> tuple[int, ...]:
    return tuple(i for s in trace.segments if s.kind != "probe" for i in s.ids)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_one_sample_is_vanilla(toy: TorchModel, temperature: float) -> None:
    plain, sampled = (
        solve(toy, s, 2, max_tokens=60, temperature=temperature) for s in ("vanilla", "majority(samples=1,early=true)")
    )
    assert {k: response(t) for k, t in plain.items()} == {k: response(t) for k, t in sampled.items()}
    for key, trace in sampled.items():
        assert trace.usage.total == plain[key].usage.total


@pytest.mark.parametrize("size", [1, 7])
def test_the_batch_changes_nothing(pebble64: TorchModel, size: int) -> None:
    def seen(traces: dict[str, Trace]) -> dict[str, Any]:
        return {k: (response(t), t.usage.total, t.events) for k, t in traces.items()}

    one, other = (
        solve(pebble64, "majority(samples=3,early=true)", 2, max_tokens=60, temperature=0.8, batch_size=n)
        for n in (size, 4)
    )
    assert seen(one) == seen(other)


def test_the_vote_over_all_samples_is_returned_and_paid(pebble: TorchModel) -> None:
    """A sample of the vote is what the model draws by itself from that stream: the first one equals vanilla's."""
    one = solve(pebble, "vanilla", temperature=0.9)
    for key, trace in solve(pebble, "majority(samples=5)", temperature=0.9).items():
        noted = trace.events["majority"]
        assert len(noted["answers"]) == noted["samples"] == 5
        assert noted["answers"][0] == one[key].answer
        assert noted["chosen"] == (vote(noted["answers"]) or 0)
        assert trace.answer == noted["answers"][noted["chosen"]]
        assert trace.usage.prompt == 5 * one[key].usage.prompt
        sides = [s for s in trace.segments if s.kind == "probe"]
        assert len(sides) == 4
        written = len(response(trace)) + sum(len(pebble.encode(s.text)) for s in sides)
        assert trace.usage.generated >= written  # end markers have no text


def test_early_agreement_elects_the_same_for_fewer_samples(pebble: TorchModel) -> None:
    full, early = (solve(pebble, f"majority(samples=5,early={e})", 6, temperature=0.9) for e in ("false", "true"))
    drawn = []
    for key, trace in early.items():
        answers = trace.events["majority"]["answers"]
        drawn.append(len(answers))
        assert answers == full[key].events["majority"]["answers"][: len(answers)]
        assert response(trace) == response(full[key])
        assert trace.usage.total <= full[key].usage.total
    assert min(drawn) == 3, "five samples agree early on some problem"


def test_greedy_runs_are_sampled_at_the_methods_temperature(pebble: TorchModel) -> None:
    greedy, warm = (solve(pebble, s, temperature=t) for s, t in (("majority", 0.0), ("majority", 0.6)))
    assert {k: response(t) for k, t in greedy.items()} == {k: response(t) for k, t in warm.items()}
    cold = solve(pebble, "majority(temperature=0.01)")
    assert {k: response(t) for k, t in greedy.items()} != {k: response(t) for k, t in cold.items()}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("majority(samples=0)", "samples"),
        ("majority(temperature=0.0)", "temperature"),
        ("majority+best-of-n", "several calls"),
    ],
)
def test_mistakes_get_one_line(spec: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(spec)


class Texts(TextModel):
    """A model of which only the texts are to be had, as of one on a server."""

    gives: ClassVar[Need] = Need.TEXT
    name = "texts"

    def __init__(self, model: TorchModel) -> None:
        self.model = model

    def respond(self, jobs: Iterable[Job], settings: Settings, method: str = "vanilla") -> Iterator[Trace]:
        return decode(self.model, jobs, settings, lambda job: Plan(self.model.render(job.problem.messages)), method)


@pytest.mark.parametrize("spec", ["majority(samples=3,early=true)", "best-of-n(samples=3)"])
def test_text_is_enough(toy: TorchModel, spec: str) -> None:
    jobs = list(jobs_for(load_task("mix").problems(limit=2, seed=5), 1))
    settings = Settings(max_tokens=60, temperature=0.8)

    def seen(model: Model) -> dict[str, Any]:
        traces = get_method(spec).solve(model, jobs, settings)
        return {t.problem_id: (response(t), t.usage.total, t.events, t.method) for t in traces}

    assert seen(Texts(toy)) == seen(toy)


@pytest.mark.parametrize("scorer", ["likelihood", "verifier"])
def test_scorers_that_need_more_than_text_say_so(toy: TorchModel, scorer: str) -> None:
    with pytest.raises(MissingAccess, match=scorer):
        get_method(f"best-of-n(scorer={scorer})").check(Texts(toy))


def test_methods_that_steer_one_stream_steer_every_sample(pebble: TorchModel) -> None:
    for trace in solve(pebble, "majority(samples=3)+cap(budget=20)").values():
        assert trace.usage.thinking <= 3 * 30
        assert trace.method == "majority(samples=3)+cap(budget=20)"
