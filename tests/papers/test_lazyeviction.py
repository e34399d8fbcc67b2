"""LazyEviction: the card's worked numbers and synthetic attention, its no-op setting, and runs on models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.decoding.eviction import Eviction, WatchingEviction
from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.attention.lazyeviction import (
    LazyEviction,
    _Recurrence,
    importance,
    percentile,
    recurrence,
    share_foreseen,
)
from thrifty.methods.tuning import Tuning
from thrifty.models.attention import Reading, attention_probabilities
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace


def policy_of(model: TorchModel, spec: str) -> Any:
    return get_method(spec).parts[0].attention(model)


# -- The card's numbers --------------------------------------------------------------------------------------


def after(times: list[int], alpha: float = 0.1) -> list[tuple[float, float]]:
    """Return TS and MRI of an entry created at 0, once after each of the times at which it is active."""
    marks, seen = torch.zeros(1, 2, dtype=torch.float64), []
    for t in range(1, max(times) + 1):
        attention = torch.tensor([alpha if t in times else 0.9 * alpha], dtype=torch.float64)
        marks = recurrence(marks[..., 0], marks[..., 1], attention, t, alpha)
        if t in times:
            seen.append((float(marks[0, 0]), float(marks[0, 1])))
    return seen


def test_recurrence_of_the_card() -> None:
    assert after([3, 4, 9]) == [(3, 3), (4, 3), (9, 5)]


def value(t: float, latest: float, longest: float, prior: str) -> float:
    return float(importance(int(t), torch.tensor([latest]).double(), torch.tensor([longest]).double(), prior))


def test_importance_of_the_card() -> None:
    assert value(12, 9, 5, "none") == pytest.approx(0.7087, abs=1e-4)
    assert value(12, 9, 5, "decreasing") - value(12, 9, 5, "none") == pytest.approx(0.0360, abs=1e-4)
    assert value(12, 9, 5, "decreasing") == pytest.approx(0.7447, abs=1e-4)
    assert value(12, 9, 5, "inverse") - value(12, 9, 5, "none") == pytest.approx(0.9003, abs=1e-4)
    assert value(10, 0, 20, "none") == pytest.approx(0.7551, abs=1e-4)
    assert value(40, 0, 5, "none") == pytest.approx(0.00067, abs=1e-5)
    assert value(7, 0, 175, "none") == pytest.approx(0.9800, abs=1e-4)
    assert value(8, 4, 4, "none") == pytest.approx(0.538, abs=1e-3), "after exactly one interval"


@pytest.mark.parametrize("prior", ["decreasing", "inverse", "none"])
def test_without_a_recurrence_only_the_moment_counts(prior: str) -> None:
    assert value(5, 5, 0, prior) == 1.0
    assert value(6, 5, 0, prior) == 0.0
    assert value(5, 9, 0, prior) == 1.0, "a row that was rewound"


def test_what_was_once_active_twice_in_a_row_keeps_the_decreasing_prior_for_good() -> None:
    """Which the other renderings of H2 do not give it: why the prior is an option."""
    assert [value(2000, 9, 1, prior) for prior in ("decreasing", "inverse", "none")] == pytest.approx(
        [1, 0.538, 0], abs=1e-3
    )


@given(st.integers(0, 3000), st.integers(0, 3000), st.sampled_from(["decreasing", "inverse", "none"]))
def test_importance_falls_with_the_gap_and_stays_finite(gap: int, longest: int, prior: str) -> None:
    now, later = (value(g, 0, longest, prior) for g in (gap, gap + 1))
    assert 0 <= later <= now <= 2


def test_evictions_of_the_card(toy: TorchModel) -> None:
    """B = 10, W = 4: at a multiple of 4 and not between, 14 entries become 10, the 4 newest among them."""
    session, index = Session(toy, policy_of(toy, "lazyeviction(budget=10,window=4)")), list[Tensor]()
    inner = session.policy.choose  # type: ignore[union-attr]  # there is one
    session.policy.choose = lambda *args: index.append(inner(*args)) or index[-1]  # type: ignore  # only looks on
    session.add([list(range(20, 30))])
    lengths = []
    for step in range(1, 17):
        session.append(torch.tensor([50 + step]))
        lengths.append(session.lengths[0])
    assert lengths == [11, 12, 13, 10] * 4
    assert len(index) == 4 * 2
    for chosen in index:
        assert chosen.shape == (1, 2, 10)
        assert (chosen[..., 1:] > chosen[..., :-1]).all()
        assert chosen[..., -4:].tolist() == [[[10, 11, 12, 13]] * 2]
    account = session.held.account(0, 10)["lazyeviction"]
    assert (account["peak"], account["evictions"], account["evicted"], account["metadata"]) == (14, 4, 16, 2)


def test_ties_go_to_the_newer_entry(toy: TorchModel) -> None:
    policy = policy_of(toy, "lazyeviction(budget=4,window=2)")
    marks = torch.zeros(1, 1, 8, 2)
    assert policy.choose(0, marks, torch.tensor([8]), torch.tensor([3]), 4).tolist() == [[[4, 5, 6, 7]]]
    marks[0, 0, 1] = torch.tensor([7.0, 5.0])
    assert policy.choose(0, marks, torch.tensor([8]), torch.tensor([3]), 4).tolist() == [[[1, 5, 6, 7]]]
    protecting = policy_of(toy, "lazyeviction(budget=4,window=2,protect_prompt=true)")
    assert protecting.keep(9, 4, 3) == 5, "more than the budget, rather than a part of the prompt"
    assert protecting.choose(0, marks, torch.tensor([8]), torch.tensor([3]), 5).tolist() == [[[0, 1, 2, 6, 7]]]


def test_a_share_is_one_of_what_was_read_and_waits_for_the_window(toy: TorchModel) -> None:
    policy = policy_of(toy, "lazyeviction(budget=0.5,window=10)")
    assert policy.keep(15, 10, 5) == 15, "half of 15 is not above 10"
    assert policy.keep(25, 20, 5) == 13
    assert policy.keep(25, 21, 5) == 25
    assert policy.keep(12, 30, 5) == 12


# -- Synthetic attention -------------------------------------------------------------------------------------

PERIOD, STEPS, HORIZON = 50, 400, 50


class Tova(WatchingEviction):
    """Keeps what the newest token attends to."""

    marks = 1

    def updated(self, marks: Tensor, attention: Tensor, steps: Tensor) -> Tensor:
        return attention[..., None]

    def score(self, layer: int, marks: Tensor, steps: Tensor) -> Tensor:
        return marks[..., 0]


def attend(active: list[set[int]], steps: int) -> Tensor:
    """Return attention ``(step, token)``: to itself, to what is active at the step, and a trace of it to everything."""
    prompt = len(active)
    attention = torch.full((steps + 1, prompt + steps + 1), 1e-6, dtype=torch.float64)
    for t in range(1, steps + 1):
        attention[t, prompt + t - 1] = 0.9
        for token, times in enumerate(active):
            attention[t, token] = 0.3 if t in times else 1e-6
    return attention


def play(policy: Eviction, attention: Tensor, prompt: int) -> list[tuple[int, list[int]]]:
    """Let a policy evict under a given attention; return after each eviction the step and the tokens still held."""
    held = list(range(prompt))
    marks = policy.fresh(torch.zeros(1, prompt)).double()[:, None]
    found = []
    for t in range(1, len(attention)):
        held.append(prompt + t - 1)
        marks = torch.cat([marks, policy.fresh(torch.full((1, 1), t)).double()[:, None]], dim=2)
        marks = policy.updated(marks, attention[t, held][None, None], torch.tensor([t]))
        keep = policy.keep(len(held), t, prompt)
        if keep < len(held):
            index = policy.choose(0, marks, torch.tensor([t]), torch.tensor([prompt]), keep)[0, 0]
            held, marks = [held[i] for i in index.tolist()], marks[:, :, index]
            found.append((t, list(held)))
    return found


def policies(toy: TorchModel, budget: int) -> dict[str, Eviction]:
    return {
        "lazy": policy_of(toy, f"lazyeviction(budget={budget},window=50,alpha=0.1)"),
        "h2o": policy_of(toy, f"h2o(budget={budget},window=50,recent=0.0)"),
        "tova": Tova("tova", budget, 50),
    }


def test_what_comes_back_is_kept_though_it_is_quiet(toy: TorchModel) -> None:
    """Token 0 is active every 40 steps, token 1 thirty times early on and never again."""
    attention = attend([set(range(40, STEPS, 40)), set(range(1, 31))], 100)
    ((step, kept),) = play(policies(toy, 55)["lazy"], attention, 2)
    assert step == 100
    assert 0 in kept
    for other in ("h2o", "tova"):
        ((_, kept),) = play(policies(toy, 55)[other], attention, 2)
        assert 0 not in kept
        assert (1 in kept) == (other == "h2o")


def recall(policy: Eviction, active: list[set[int]]) -> float:
    """Return the mean share of the tokens that will be active before the next eviction which are still there."""
    shares = []
    for t, held in play(policy, attend(active, STEPS), len(active)):
        coming = [i for i, times in enumerate(active) if any(t < u <= t + HORIZON for u in times)]
        shares.append(sum(i in held for i in coming) / len(coming))
    return sum(shares) / len(shares)


def test_recall_is_best_and_the_gap_closes_as_the_budget_grows(toy: TorchModel) -> None:
    recurring = [set(range(period, STEPS + HORIZON, period)) for period in (11, 17, 24, 31, 38, 43, 47)]
    early = [set(range(1, 34 + i, 3)) for i in range(7)]
    active = [times for pair in zip(recurring, early, strict=True) for times in pair]
    found = {
        budget: {name: recall(policy, active) for name, policy in policies(toy, budget).items()}
        for budget in (60, 66, 300)
    }
    for budget in (60, 66):
        assert found[budget]["lazy"] > max(found[budget]["h2o"], found[budget]["tova"])
    assert found[60]["lazy"] <= found[66]["lazy"] <= found[300]["lazy"] == 1.0
    gaps = [found[budget]["lazy"] - found[budget]["h2o"] for budget in (66, 300)]
    assert gaps[0] > gaps[1]


# -- In sessions and runs ------------------------------------------------------------------------------------


def test_marks_are_those_of_the_cards_loop(toy: TorchModel) -> None:
    """Beside every entry of every head, what a loop over the steps finds from the probabilities themselves."""
    policy = policy_of(toy, "lazyeviction(budget=500,window=4,alpha=0.05)")
    seen: list[tuple[int, Tensor]] = []
    inner = policy.observe

    def observe(reading: Reading, layer: int, query: Tensor, keys: Tensor, mask: Tensor, scaling: float) -> None:
        inner(reading, layer, query, keys, mask, scaling)
        seen.append((layer, attention_probabilities(query, keys, mask, scaling)[0, :, :, 0].amax(1)))

    policy.observe = observe
    session = Session(toy, policy)
    session.add([list(range(20, 26))])
    for step in range(25):
        session.append(torch.tensor([50 + 7 * step]))
    recurring = 0
    for layer in range(2):
        marks = session.cache.layers[layer].marks[0, :, :31].tolist()
        for head in range(2):
            latest, longest = [0] * 6, [0] * 6
            for t, attention in enumerate((a[head].tolist() for found, a in seen if found == layer), start=1):
                latest, longest = [*latest, t], [*longest, 0]
                for i, a in enumerate(attention):
                    if a >= 0.05:
                        longest[i], latest[i] = max(longest[i], t - latest[i]), t
            assert marks[head] == [[a, b] for a, b in zip(latest, longest, strict=True)]
            recurring += sum(b > 0 for b in longest)
    assert recurring > 10


def solve(model: TorchModel, spec: str, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 60, "batch_size": 3, **values})
    jobs = jobs_for(load_task("mix").problems(limit=3, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[int]]:
    return {k: [i for s in t.segments if s.kind != "probe" for i in s.ids] for k, t in traces.items()}


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("spec", ["lazyeviction(budget=1.0)", "lazyeviction(budget=10000,window=8)"])
def test_a_budget_above_everything_equals_vanilla(toy: TorchModel, spec: str, temperature: float) -> None:
    plain, lazy = (solve(toy, name, temperature=temperature) for name in ("vanilla", spec))
    assert ids(plain) == ids(lazy)
    assert all(t.events.get("lazyeviction", {"evicted": 0})["evicted"] == 0 for t in lazy.values())


@pytest.mark.parametrize("h2", ["decreasing", "inverse"])
def test_the_batch_changes_nothing(toy: TorchModel, h2: str) -> None:
    spec = f"lazyeviction(budget=0.4,window=5,alpha=0.02,h2={h2})"
    runs = [solve(toy, spec, batch_size=size, temperature=0.7) for size in (1, 2, 3)]
    assert ids(runs[0]) == ids(runs[1]) == ids(runs[2])
    assert [runs[0][key].events for key in runs[2]] == [t.events for t in runs[2].values()]
    assert ids(runs[0]) != ids(solve(toy, "vanilla", temperature=0.7))


def test_end_to_end_on_the_embedded_model(pebble: TorchModel) -> None:
    for trace in solve(pebble, "lazyeviction(window=8)", max_tokens=120).values():
        account, read = trace.events["lazyeviction"], trace.usage.prompt + trace.usage.generated - 1
        assert account["evictions"] == (trace.usage.generated - 1) // 8 > 0
        assert account["kept"] + account["evicted"] == read
        assert account["kept"] <= read / 2 + 8
        assert account["peak"] < read
        assert account["attended"] < account["full"]


@pytest.mark.parametrize("other", ["cap(budget=20)", "cgrs(delta=0.0)", "first-try"])
def test_it_composes_with_control(pebble: TorchModel, other: str) -> None:
    for trace in solve(pebble, f"{other}+lazyeviction(window=8,budget=0.8)", max_tokens=80).values():
        assert trace.events["lazyeviction"]["evicted"] > 0
        assert trace.answer_text.strip()


def test_share_foreseen() -> None:
    returns, foreseen = Counter({2: 7, 10: 5, 40: 5}), Counter({2: 7, 10: 3, 40: 1})
    assert share_foreseen(returns, foreseen, 4) == 0.4
    assert share_foreseen(returns, foreseen, 10) == 0.2
    assert share_foreseen(returns, foreseen, 40) == 0.0


def test_which_returns_the_interval_foresees() -> None:
    watch = _Recurrence(0.1)
    marks = torch.zeros(1, 1, 1, 2)
    for step in range(1, 13):
        attention = torch.full((1, 1, 1), 0.5 if step in (3, 4, 9, 12) else 0.0)
        marks = watch.updated(marks, attention, torch.tensor([step]))
    assert watch.returns == Counter({3: 2, 1: 1, 5: 1})
    assert watch.foreseen == Counter({1: 1, 3: 1})  # at steps 4 and 12; the longest interval was 3, then 5


def test_percentile() -> None:
    assert percentile(Counter({0: 3, 10: 5, 40: 2}), 0.8) == 10
    assert percentile(Counter({0: 3, 10: 5, 40: 2}), 0.81) == 40
    assert percentile(Counter(), 0.8) == 0


def test_tuning_measures_the_window(toy: TorchModel, pebble: TorchModel, tmp_path: Path) -> None:
    settings = Settings(max_tokens=24, batch_size=10)
    options = {"alpha": 0.02, "percentile": 0.9}
    artefact = LazyEviction.tune(Tuning("lazyeviction", toy, load_task("mix"), settings, 10, options))
    window = artefact.values["window"]
    assert 1 < window < 24
    assert artefact.report["percentiles"]["90%"] == window
    assert 0 < artefact.report["recurring"] < 1
    path = artefact.save(tmp_path / "w.json")[0]
    by_file = solve(toy, f"lazyeviction(calibration='{path}',alpha=0.02)")
    assert ids(by_file) == ids(solve(toy, f"lazyeviction(window={window},alpha=0.02)"))
    with pytest.raises(ThriftyError, match=r"made with alpha=0\.02"):
        get_method(f"lazyeviction(calibration='{path}')").check(toy)
    with pytest.raises(ThriftyError, match="weights"):
        get_method(f"lazyeviction(calibration='{path}',alpha=0.02)").check(pebble)
    with pytest.raises(ThriftyError, match="above the window"):
        get_method(f"lazyeviction(calibration='{path}',alpha=0.02,budget=2)").check(toy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("budget=0", "budget"),
        ("budget=1.5", "budget"),
        ("budget=100", "above the window, 175"),
        ("window=0", "window"),
        ("alpha=0.0", "alpha"),
        ("h2=other", "decreasing, inverse, none"),
    ],
)
def test_mistakes_get_one_line(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message) as mistake:
        get_method(f"lazyeviction({options})")
    assert "\n" not in str(mistake.value)
