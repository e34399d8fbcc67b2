"""Worked numbers and properties of the statistics of a bench run."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.bench import statistics
from thrifty.bench.statistics import (
    Interval,
    PerProblem,
    cap_budget_for,
    e3,
    newcombe,
    over_budget,
    paired_bootstrap,
    pareto_front,
    summarise,
    thinking_tokens,
    wilson,
)
from thrifty.traces.trace import Segment, Trace, Usage


def record(
    problem: str,
    method: str = "vanilla",
    *,
    sample: int = 0,
    thinking: int = 10,
    forced: int = 0,
    correct: bool | None = True,
    first: int | None = None,
    exit_reason: str = "model",
    events: dict[str, Any] | None = None,
    **usage: int,
) -> dict[str, Any]:
    segments = [
        Segment("thinking", "thinking", "so", tuple(range(thinking))),
        Segment("injected", "thinking", "</think>", tuple(range(forced))),
        Segment("probe", "thinking", "7?", (1, 2, 3)),
        Segment("answer", "answer", "7", (7,)),
    ]
    account = Usage(**{"prompt": 5, "thinking": thinking, "answer": 1, "injected": forced, **usage})
    trace = Trace(problem, method, sample, 0, segments, "eos", "model", "7", correct, account, events or {})
    return json.loads(trace.to_json()) | {"exit_reason": exit_reason, "first_correct_tokens": first}


def meta(*methods: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "task": "t", "seed": 3, "limit": 2, "samples": 1, "methods": list(methods), **more}


def per_problem(tokens: list[float], accuracy: list[float]) -> PerProblem:
    return PerProblem(np.array(tokens, dtype=float), np.array(accuracy, dtype=float))


def test_wilson_worked_numbers() -> None:
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))
    wider = wilson(successes, n, confidence=0.99)
    assert wider.low <= low
    assert wider.high >= high


@pytest.mark.parametrize("arguments", [(-1, 3), (4, 3), (1, 3, 0.0), (1, 3, 1.0)])
def test_wilson_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):
        wilson(*arguments)


def test_newcombe_worked_number() -> None:
    """56/70 less 48/80: the example of Newcombe (1998), 0.2 with 0.0524 to 0.3339."""
    found = newcombe(48 / 80, wilson(48, 80), 56 / 70, wilson(56, 70))
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_bootstrap_of_identical_data_is_exact() -> None:
    generator = np.random.default_rng(1)
    same = PerProblem(generator.lognormal(5, 1, 37), generator.random(37))
    found = paired_bootstrap(same, same)
    assert (found.problems, found.token_ratio, found.accuracy_difference) == (37, 1.0, 0.0)
    assert found.token_ratio_interval == (1.0, 1.0)
    assert found.accuracy_difference_interval == (0.0, 0.0)


def test_bootstrap_pairs_problems() -> None:
    """Half the tokens on every problem is a ratio without doubt, however much problems differ."""
    vanilla = per_problem([10, 1000, 40], [1, 0, 1])
    found = paired_bootstrap(per_problem([5, 500, 20], [1, 0, 1]), vanilla)
    assert found.token_ratio_interval == (0.5, 0.5)
    shuffled = paired_bootstrap(per_problem([500, 20, 5], [1, 0, 1]), vanilla)
    assert shuffled.token_ratio == 0.5
    assert shuffled.token_ratio_interval.low < 0.1


def test_bootstrap_ratio_is_of_means() -> None:
    found = paired_bootstrap(per_problem([30, 30], [0.5, 1]), per_problem([10, 90], [1, 0]))
    assert found.token_ratio == 0.6
    assert found.accuracy_difference == 0.25
    # with two problems a resample is one of three mixtures, so the percentiles are its extremes
    assert found.token_ratio_interval == pytest.approx((1 / 3, 3.0))
    assert found.accuracy_difference_interval == (-0.5, 1.0)


def test_bootstrap_is_seeded_and_independent_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    method, vanilla = (PerProblem(generator.lognormal(4, 1, 50), generator.random(50)) for _ in range(2))
    whole = paired_bootstrap(method, vanilla, resamples=999, seed=5)
    assert paired_bootstrap(method, vanilla, resamples=999, seed=5) == whole
    assert paired_bootstrap(method, vanilla, resamples=999, seed=6) != whole
    monkeypatch.setattr(statistics, "_DRAWN_AT_ONCE", 70)
    assert paired_bootstrap(method, vanilla, resamples=999, seed=5) == whole


def test_bootstrap_covers_the_truth() -> None:
    """95% intervals hold the true ratio and difference about 95 times in 100."""
    generator = np.random.default_rng(3)
    runs, n, ratio, difference = 200, 80, 0.7, -0.1
    held = np.zeros(2)
    for _ in range(runs):
        tokens = generator.lognormal(5, 0.6, n)
        method = PerProblem(tokens * generator.gamma(20, ratio / 20, n), generator.binomial(1, 0.8 + difference, n))
        found = paired_bootstrap(method, PerProblem(tokens, generator.binomial(1, 0.8, n)), resamples=400)
        held += (
            found.token_ratio_interval.low <= ratio <= found.token_ratio_interval.high,
            found.accuracy_difference_interval.low <= difference <= found.accuracy_difference_interval.high,
        )
    assert all(0.89 <= share <= 0.99 for share in held / runs), held / runs


@pytest.mark.parametrize(
    ("method", "vanilla", "options"),
    [
        (per_problem([], []), per_problem([], []), {}),
        (per_problem([1], [1]), per_problem([1, 2], [1, 1]), {}),
        (per_problem([1, 2], [1]), per_problem([1, 2], [1, 1]), {}),
        (per_problem([1], [1]), per_problem([0], [1]), {}),
        (per_problem([1], [1]), per_problem([1], [1]), {"resamples": 0}),
        (per_problem([1], [1]), per_problem([1], [1]), {"confidence": 95}),
    ],
)
def test_bootstrap_refuses(method: PerProblem, vanilla: PerProblem, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        paired_bootstrap(method, vanilla, **options)


def test_cap_budget_worked_numbers() -> None:
    thinking, other = [10, 20, 30], [5, 5, 5]
    assert cap_budget_for(thinking, other, 5 + 20, 0) == 30  # vanilla's own mean: no cap
    assert cap_budget_for(thinking, other, 5 + (10 + 20 + 20) / 3, 0) == 20
    assert cap_budget_for(thinking, other, 5 + (10 + 10 + 10) / 3, 0) == 10
    assert cap_budget_for(thinking, other, 5 + (10 + (15 + 2) * 2) / 3, 2) == 15  # two thoughts closed at two tokens
    assert cap_budget_for(thinking, other, 1, 0) == 0
    assert cap_budget_for(thinking, other, 1000, 0) == 30
    assert cap_budget_for([0, 0], [5, 5], 5, 4) == 0


def predicted(thinking: list[int], other: list[int], cost: float, budget: int) -> float:
    spent = [min(t, budget) + cost * (t > budget) + o for t, o in zip(thinking, other, strict=True)]
    return sum(spent) / len(spent)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=8),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 6),
)
def test_cap_budget_is_the_largest_within_the_target_and_monotone(
    pairs: list[tuple[int, int]], target: int, more: int, cost: int
) -> None:
    thinking, other = (list(values) for values in zip(*pairs, strict=True))
    budget = cap_budget_for(thinking, other, target, cost)
    within = [b for b in range(max(thinking) + 1) if predicted(thinking, other, cost, b) <= target + 1e-9]
    assert budget == max(within, default=0)
    if within and budget < max(thinking):
        assert predicted(thinking, other, cost, budget) > target - 1
    assert cap_budget_for(thinking, other, target + more, cost) >= budget


@pytest.mark.parametrize("arguments", [([], []), ([1], [1, 2]), ([-1], [1]), ([1], [-1])])
def test_cap_budget_refuses(arguments: tuple[list[int], list[int]]) -> None:
    with pytest.raises(ValueError):
        cap_budget_for(*arguments, target_mean_total=3, closing_cost=0)


def test_e3_worked_numbers() -> None:
    assert e3(0.8, 400) == pytest.approx(0.0016)
    assert e3(80, 400) == pytest.approx(16)  # the same in percent
    with pytest.raises(ValueError, match="undefined"):
        e3(0.8, 0)


def test_e3_counts_latent_steps_and_stays_silent_where_nothing_was_generated() -> None:
    records = [record("a", "latent", thinking=3, latent_steps=6), record("a", "silent", thinking=0, answer=0)]
    found = summarise(records, meta("latent", "silent"))["methods"]
    assert found["latent"]["generated_tokens_mean"] == 10
    assert found["latent"]["e3"] == pytest.approx(0.1)
    assert found["silent"]["generated_tokens_mean"] == 0
    assert found["silent"]["e3"] is None


def test_pareto_front() -> None:
    assert pareto_front([]) == []
    assert pareto_front([(100, 0.8), (50, 0.7), (60, 0.6), (100, 0.8), (100, 0.7), (120, 0.8)]) == [1, 0, 3]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    def dominated(p: tuple[float, float]) -> bool:
        return any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)

    front = pareto_front(points)
    assert sorted(front) == [i for i, p in enumerate(points) if not dominated(p)]
    assert all(points[i][0] <= points[j][0] for i, j in itertools.pairwise(front))


def test_thinking_tokens_count_what_was_forced_but_no_side_stream() -> None:
    assert thinking_tokens(record("a", thinking=10, forced=4, probe=50)) == 14


def test_latent_steps_count_as_thinking_where_they_stand_in_it() -> None:
    latent = record("a", thinking=10, forced=4, latent_steps=5, events={"budget": 13})
    latent["segments"].insert(1, {"kind": "latent", "phase": "thinking", "text": "so", "ids": [1, 2, 3]})
    latent["segments"].append({"kind": "latent", "phase": "answer", "text": "7", "ids": [4, 5]})
    assert thinking_tokens(latent) == 17
    assert not over_budget(latent)
    assert over_budget({**latent, "events": {"budget": 12}})
    assert summarise([latent], meta("vanilla"))["methods"]["vanilla"]["thinking_tokens_mean"] == 17
    # whoever reads a vector last has not been closed by force
    latent["segments"][2] = {"kind": "latent", "phase": "thinking", "text": "so", "ids": [6]}
    assert thinking_tokens(latent) == 14
    assert over_budget(latent)


def test_a_budget_is_kept_if_only_the_closer_is_beyond_it() -> None:
    assert not over_budget(record("a", thinking=10, forced=4, events={"budget": 10}))
    assert over_budget(record("a", thinking=11, forced=4, events={"budget": 10}))
    assert not over_budget(record("a", thinking=11))
    assert not over_budget(record("a", thinking=11, events={"budget": None}))
    late = record("a", thinking=5, forced=6, events={"budget": 10})
    late["segments"].append({"kind": "thinking", "phase": "thinking", "text": "hm", "ids": []})
    assert over_budget(late)  # what is forced in the middle counts


def test_summary_worked_numbers() -> None:
    records = [
        record("a", thinking=34, first=8, exit_reason="model"),  # 40 tokens
        record("b", thinking=54, correct=False, exit_reason="limit"),  # 60 tokens
        record("c", thinking=94),  # of this one only vanilla has a record: 100 tokens
        record("b", "cgrs", thinking=14, forced=6, helper=4, correct=True, first=9, events={"budget": 10}),  # 30
        record("a", "cgrs", thinking=4, probe=10, correct=None, exit_reason="cgrs"),  # 20 tokens
        record("a", "cap(budget=9)", thinking=9, correct=False),
        record("b", "cap(budget=9)", thinking=9, forced=2),
        record("b", "unknown", thinking=9),
    ]
    costs = {"cgrs": {"wall_seconds": 2.5, "cpu_seconds": 2.0, "peak_rss_mib": 300.0}}
    caps = {"cgrs": "cap(budget=9)"}
    summary = summarise(iter(records), meta("vanilla", "cgrs", caps=caps, costs=costs))
    assert list(summary) == ["model", "task", "seed", "limit", "samples", "methods"]
    assert list(summary["methods"]) == ["vanilla", "cgrs"]
    vanilla, cgrs = summary["methods"].values()
    ends = {key: cgrs.pop(key) for key in ("accuracy_ci", "token_ratio_ci", "accuracy_diff_ci", "usage")}
    assert cgrs == {
        "n": 2,
        "accuracy": 0.5,
        "tokens_mean": 25.0,
        "thinking_tokens_mean": 12.0,
        "generated_tokens_mean": 13.0,  # 14 + 6 + 1 and 4 + 1: no prompt, probes or helpers
        "e3": pytest.approx(0.25 / 13),
        "exit_reasons": {"cgrs": 1, "model": 1},
        "budget_violations": 1,
        "first_correct_tokens_mean": 9.0,
        "tokens_after_first_correct_share": pytest.approx(1 - 9 / 20),
        "token_ratio": 0.5,
        "accuracy_diff": 0.0,
        "cap_spec": "cap(budget=9)",
        "cap_accuracy_at_same_tokens": 0.5,
        "cap_tokens_mean": 16.0,
        "wall_seconds": 2.5,
        "cpu_seconds": 2.0,
        "peak_rss_mib": 300.0,
    }
    assert ends["accuracy_ci"] == list(wilson(1, 2))
    assert ends["token_ratio_ci"] == [0.5, 0.5]  # half of vanilla on a and on b
    assert ends["accuracy_diff_ci"] == [-1.0, 1.0]
    assert ends["usage"] == {
        "prompt": 10,
        "thinking": 18,
        "answer": 2,
        "injected": 6,
        "probe": 10,
        "helper": 4,
        "reread": 0,
        "latent_steps": 0,
        "drafted": 0,
        "forward_passes": 0,
        "flops": 0.0,
        "wall_seconds": 0.0,
    }
    assert vanilla["n"] == 3
    assert vanilla["accuracy"] == 2 / 3
    assert vanilla["exit_reasons"] == {"model": 2, "limit": 1}
    assert (vanilla["token_ratio"], vanilla["token_ratio_ci"]) == (1.0, [1.0, 1.0])
    assert (vanilla["accuracy_diff"], vanilla["accuracy_diff_ci"]) == (0.0, [0.0, 0.0])
    assert vanilla["cap_spec"] is vanilla["cap_accuracy_at_same_tokens"] is vanilla["wall_seconds"] is None
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_samples_of_a_problem_are_averaged_first() -> None:
    """Problem a has three samples and b one; each counts once in the ratio."""
    records = [record("a", sample=i, thinking=4) for i in range(3)] + [record("b", thinking=24)]  # 10 and 30 tokens
    records += [record("a", "m", sample=i, thinking=t, correct=i == 0) for i, t in enumerate((4, 9, 14))]  # mean 15
    records += [record("b", "m", thinking=14)]  # 20 tokens
    found = summarise(records, meta("vanilla", "m"))["methods"]["m"]
    assert found["token_ratio"] == pytest.approx(35 / 40)
    assert found["accuracy_diff"] == pytest.approx((1 / 3 - 1) / 2)
    assert found["tokens_mean"] == pytest.approx((45 + 20) / 4)  # a plain mean over records
    assert found["accuracy"] == 0.5


def test_summary_does_not_depend_on_the_order_of_the_records() -> None:
    generator = np.random.default_rng(4)
    records = [
        record(f"p{i}", spec, sample=k, thinking=int(generator.integers(1, 200)), correct=bool(generator.integers(2)))
        for spec in ("vanilla", "m")
        for i in range(12)
        for k in range(2)
    ]
    found = summarise(records, meta("vanilla", "m"))
    assert summarise(reversed(records), meta("vanilla", "m")) == found
    shuffled = [records[i] for i in generator.permutation(len(records))]
    assert json.dumps(summarise(shuffled, meta("vanilla", "m"))) == json.dumps(found)


def test_summary_without_vanilla_or_without_records() -> None:
    summary = summarise([record("a", "m")], meta("m", "empty"))["methods"]
    for method in summary.values():
        assert method["token_ratio"] is method["token_ratio_ci"] is None
        assert method["accuracy_diff"] is method["accuracy_diff_ci"] is None
    assert summary["m"]["accuracy"] == 1.0
    assert summary["empty"]["n"] == 0
    assert summary["empty"]["accuracy"] is summary["empty"]["accuracy_ci"] is summary["empty"]["tokens_mean"] is None
    assert summary["empty"]["first_correct_tokens_mean"] is summary["empty"]["e3"] is None


def test_vanilla_counts_even_if_it_was_not_asked_for_and_may_be_the_cap() -> None:
    records = [record("a"), record("a", "m", thinking=2)]
    found = summarise(records, meta("m", caps={"m": "vanilla"}))["methods"]
    assert list(found) == ["m"]
    assert found["m"]["token_ratio"] == 0.5
    assert found["m"]["cap_tokens_mean"] == 16.0


def test_intervals_are_named() -> None:
    assert isinstance(wilson(1, 2), Interval)
    assert wilson(1, 2).low < wilson(1, 2).high
