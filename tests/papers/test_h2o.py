"""H2O: the sums it goes by, what it keeps, its no-op setting, and runs on models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from thrifty.decoding.eviction import QUERY_BLOCK
from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.models.attention import Reading, attention_probabilities
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace


def policy_of(model: TorchModel, spec: str) -> Any:
    return get_method(spec).parts[0].attention(model)


def test_the_newest_half_and_the_heavy_hitters_stay(toy: TorchModel) -> None:
    policy = policy_of(toy, "h2o(budget=4)")
    marks = torch.tensor([5.0, 1.0, 3.0, 9.0, 3.0, 2.0, 0.1]).view(1, 1, 7, 1)
    step, prompt = torch.tensor([3]), torch.tensor([4])
    assert policy.keep(7, 3, 4) == 4
    assert policy.choose(0, marks, step, prompt, 4).tolist() == [[[0, 3, 5, 6]]]
    assert policy_of(toy, "h2o(budget=4,recent=0.0)").choose(0, marks, step, prompt, 4).tolist() == [[[0, 3, 4, 6]]]
    assert policy_of(toy, "h2o(budget=4,recent=1.0)").choose(0, marks, step, prompt, 4).tolist() == [[[3, 4, 5, 6]]]
    assert policy_of(toy, "h2o(budget=0.5,recent=1.0)").keep(7, 3, 4) == 4, "a share that all goes to the newest"


def test_attention_is_summed_over_steps_prompts_and_query_heads(toy: TorchModel) -> None:
    """Beside every entry stands what all tokens behind it gave it, however long the prompt and whatever beside it."""
    policy = policy_of(toy, "h2o(budget=1000)")
    seen: list[tuple[int, Tensor]] = []
    inner = policy.observe

    def observe(reading: Reading, layer: int, query: Tensor, keys: Tensor, mask: Tensor, scaling: float) -> None:
        inner(reading, layer, query, keys, mask, scaling)
        seen.append((layer, attention_probabilities(query, keys, mask, scaling).sum(2)))

    policy.observe = observe
    session = Session(toy, policy)
    prompt = QUERY_BLOCK + 20
    session.add([list(range(20, 20 + prompt)), [9, 8, 7]])
    for step in range(6):
        session.append(torch.tensor([50 + step, 80 + step]))
    for row, length in ((0, prompt), (1, 3)):
        for layer in range(2):
            expected = torch.zeros(2, session.lengths[row], dtype=torch.float64)
            for i, attention in enumerate(a[row] for found, a in seen if found == layer):
                mine = attention[:, : length if not i else 1, : session.lengths[row]].sum(1)
                expected[:, : mine.shape[1]] += mine
            marks = session.cache.layers[layer].marks[row, :, : session.lengths[row], 0]
            torch.testing.assert_close(marks, expected, rtol=1e-9, atol=1e-9)
            # each token gives one from each of two query heads
            assert marks.sum(1).tolist() == pytest.approx([2 * session.lengths[row]] * 2)


def solve(model: TorchModel, spec: str, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 50, "batch_size": 3, **values})
    jobs = jobs_for(load_task("mix").problems(limit=3, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[int]]:
    return {k: [i for s in t.segments if s.kind != "probe" for i in s.ids] for k, t in traces.items()}


@pytest.mark.parametrize("spec", ["h2o(budget=1.0)", "h2o(budget=10000)"])
def test_a_budget_above_everything_equals_vanilla(toy: TorchModel, spec: str) -> None:
    assert ids(solve(toy, spec, temperature=0.9)) == ids(solve(toy, "vanilla", temperature=0.9))


@pytest.mark.parametrize("window", [1, 5])
def test_the_batch_changes_nothing(toy: TorchModel, window: int) -> None:
    spec = f"h2o(budget=0.3,window={window})"
    one, three = (solve(toy, spec, batch_size=size, temperature=0.7) for size in (1, 3))
    assert ids(one) == ids(three)
    assert [one[key].events for key in three] == [t.events for t in three.values()]
    assert ids(one) != ids(solve(toy, "vanilla", temperature=0.7))


def test_end_to_end_on_the_embedded_model(pebble: TorchModel) -> None:
    for trace in solve(pebble, "h2o+cap(budget=60)", max_tokens=100).values():
        account = trace.events["h2o"]
        assert account["kept"] == -(-(account["kept"] + account["evicted"]) // 2)
        assert account["metadata"] == 1


@pytest.mark.parametrize("options", ["recent=1.5", "budget=1.5", "budget=4,window=4"])
def test_mistakes_get_one_line(options: str) -> None:
    with pytest.raises(ThriftyError, match="h2o: "):
        get_method(f"h2o({options})")
