"""Sliding window with sinks: what it keeps, its no-op setting, and runs on models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace


def test_the_sinks_and_the_newest_stay(toy: TorchModel) -> None:
    """Ten entries: the first four and the six newest, in every layer as a session without a limit has them."""
    plain, session = Session(toy), Session(toy, get_method("sliding-window(budget=10)").parts[0].attention(toy))
    for one in (plain, session):
        one.add([list(range(20, 32))])
    for step in range(9):
        for one in (plain, session):
            one.append(torch.tensor([50 + step]))
    assert (session.lengths, session.positions) == ([10], [21])
    # what the first layer stores depends on the tokens and their positions alone
    keys, kept = (one.cache.layers[0].keys[0] for one in (plain, session))
    torch.testing.assert_close(kept[:, :10], keys[:, [0, 1, 2, 3, 15, 16, 17, 18, 19, 20]])
    account = session.held.account(0, 10)["sliding-window"]
    assert account["attended"] == 2 * (13 + 8 * 11), "the first step still sees the whole prompt"
    assert (account["peak"], account["evictions"], account["evicted"]) == (13, 9, 11)


def solve(model: TorchModel, spec: str, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 50, "batch_size": 3, **values})
    jobs = jobs_for(load_task("mix").problems(limit=3, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[int]]:
    return {k: [i for s in t.segments if s.kind != "probe" for i in s.ids] for k, t in traces.items()}


@pytest.mark.parametrize("spec", ["sliding-window(budget=1.0)", "sliding-window(budget=10000)"])
def test_a_budget_above_everything_equals_vanilla(toy: TorchModel, spec: str) -> None:
    assert ids(solve(toy, spec, temperature=0.9)) == ids(solve(toy, "vanilla", temperature=0.9))


@pytest.mark.parametrize("window", [1, 5])
def test_the_batch_changes_nothing(toy: TorchModel, window: int) -> None:
    spec = f"sliding-window(budget=0.3,window={window})"
    one, three = (solve(toy, spec, batch_size=size, temperature=0.7) for size in (1, 3))
    assert ids(one) == ids(three)
    assert [one[key].events for key in three] == [t.events for t in three.values()]
    assert ids(one) != ids(solve(toy, "vanilla", temperature=0.7))


def test_end_to_end_on_the_embedded_model(pebble: TorchModel) -> None:
    for trace in solve(pebble, "sliding-window(budget=0.7)+cap(budget=60)", max_tokens=100).values():
        account = trace.events["sliding-window"]
        assert account["kept"] == -(-7 * (account["kept"] + account["evicted"]) // 10)
        assert account["attended"] < account["full"]


@pytest.mark.parametrize("options", ["sinks=-1", "budget=5", "budget=8,window=4", "budget=-1", "window=0"])
def test_mistakes_get_one_line(options: str) -> None:
    with pytest.raises(ThriftyError, match="sliding-window: "):
        get_method(f"sliding-window({options})")
