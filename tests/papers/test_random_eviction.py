"""Random eviction: what it never touches, how it draws, its no-op setting, and runs on models."""

from __future__ import annotations

from collections import Counter
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


def test_the_prompt_and_the_newest_stay_and_the_others_are_equally_likely(toy: TorchModel) -> None:
    policy: Any = get_method("random-eviction(budget=12,window=3)").parts[0].attention(toy)
    prompts, counts, sets = torch.tensor([5]), Counter[int](), set()
    for step in range(3, 1203, 3):
        for layer in range(2):
            chosen = policy.choose(layer, torch.zeros(1, 2, 18, 0), torch.tensor([step]), prompts, 12)
            for head in chosen[0].tolist():
                assert head[:5] == [0, 1, 2, 3, 4]
                assert head[-3:] == [15, 16, 17]
                counts.update(head[5:-3])
                sets.add(tuple(head))
    expected = 400 * 2 * 2 * 4 / 10
    assert set(counts) == set(range(5, 15))
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 27.9  # 0.1% of the time by chance
    assert len(sets) > 150, "heads, layers and steps draw on their own"


def test_the_keys_of_the_prompt_are_still_there(toy: TorchModel) -> None:
    plain, session = Session(toy), Session(toy, get_method("random-eviction(budget=15)").parts[0].attention(toy))
    for one in (plain, session):
        one.add([list(range(20, 32))])
        for step in range(20):
            one.append(torch.tensor([50 + step]))
    assert session.lengths == [15]
    for before, layer in zip(plain.cache.layers, session.cache.layers, strict=True):
        torch.testing.assert_close(layer.keys[0, :, :12], before.keys[0, :, :12])


def solve(model: TorchModel, spec: str, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 50, "batch_size": 3, **values})
    jobs = jobs_for(load_task("mix").problems(limit=3, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[int]]:
    return {k: [i for s in t.segments if s.kind != "probe" for i in s.ids] for k, t in traces.items()}


@pytest.mark.parametrize("spec", ["random-eviction(budget=1.0)", "random-eviction(budget=10000)"])
def test_a_budget_above_everything_equals_vanilla(toy: TorchModel, spec: str) -> None:
    assert ids(solve(toy, spec, temperature=0.9)) == ids(solve(toy, "vanilla", temperature=0.9))


def test_the_batch_changes_nothing(toy: TorchModel) -> None:
    one, three = (solve(toy, "random-eviction(budget=0.7)", batch_size=size, temperature=0.7) for size in (1, 3))
    assert ids(one) == ids(three)
    assert [one[key].events for key in three] == [t.events for t in three.values()]
    assert ids(one) != ids(solve(toy, "vanilla", temperature=0.7))


def test_end_to_end_on_the_embedded_model(pebble: TorchModel) -> None:
    for trace in solve(pebble, "random-eviction(budget=100,window=4)+cap(budget=60)", max_tokens=100).values():
        account = trace.events["random-eviction"]
        assert account["peak"] <= max(100, trace.usage.prompt + 4) + 4
        assert account["kept"] + account["evicted"] == trace.usage.prompt + trace.usage.generated - 1


@pytest.mark.parametrize("options", ["budget=0", "budget=2.5", "window=0", "budget=3,window=3"])
def test_mistakes_get_one_line(options: str) -> None:
    with pytest.raises(ThriftyError, match="random-eviction: "):
        get_method(f"random-eviction({options})")
