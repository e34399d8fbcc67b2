"""A*-Decoding: the card's worked numbers, its synthetic task, and runs on the embedded model."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests_helpers import random_verifier
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.collaborate.astar_decoding import Budget, Search, State, smoothed
from thrifty.methods.shared.steps import STEPS
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace

TREE = {"": {"A": 0.7, "B": 0.4}, "A": {"A1": 0.6, "A2": 0.9}}
"""The card's example."""


def explore(tree: dict[str, dict[str, float]], **options: Any) -> tuple[list[str], dict[str, State[str]]]:
    """Return the states of a tree in the order in which they are expanded, and all of them by name."""
    search = Search(root="", **options)
    order: list[str] = []
    states: dict[str, State[str]] = {}
    while (state := search.pop()) is not None:
        order.append(state.item)
        for name, score in tree.get(state.item, {}).items():
            states[name] = search.add(state, name, score)
    return order[1:], states


def test_worked_numbers_of_the_card() -> None:
    order, states = explore(TREE)
    expected = {"A": (0.2, 0.5), "B": (0.0, 0.6), "A1": (0.2, 0.6), "A2": (0.4, 0.5)}
    for name, (g, f) in expected.items():
        assert (states[name].g, states[name].f) == pytest.approx((g, f))
    assert order == ["A", "A2", "A1", "B"]


def test_greedy_looks_at_the_newest_score_alone() -> None:
    order, states = explore(TREE, cost="greedy")
    assert order == ["A", "A2", "A1", "B"]
    assert [states[name].f for name in ("A", "A2", "A1", "B")] == pytest.approx([0.3, 0.1, 0.4, 0.6])


def test_the_other_costs() -> None:
    _, states = explore(TREE, cost="neglog")
    assert states["A2"].f == pytest.approx(-math.log(0.7) - math.log(0.9))
    search = Search(root="", cost="length", length_weight=2.0, budget=Budget(tokens=100))
    root = search.pop()
    assert root is not None
    first = search.add(root, "A", 0.7, tokens=10)
    assert first.f == pytest.approx(2.0 * 10 / 100 + 0.3)
    assert search.add(first, "A1", 0.6, tokens=5).f == pytest.approx(2.0 * 15 / 100 + 0.4)
    assert explore({"": {"A": 0.0}}, cost="neglog")[1]["A"].f == math.inf


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_f_never_falls_along_a_path_and_is_the_sum_of_the_drops(scores: list[float]) -> None:
    search = Search(root=-1, depth=100)
    value, total, f = 0.5, 0.5, 0.5
    for i, score in enumerate(scores):
        state = search.pop()
        assert state is not None
        child = search.add(state, i, score)
        step = max(0.0, score - value)
        assert 1 - value <= step + 1 - score + 1e-12, "h is consistent"
        total += max(0.0, value - score)
        assert child.f >= f - 1e-12
        assert child.f == pytest.approx(total, abs=1e-9)
        value, f = score, child.f


def test_ties_go_to_the_larger_value_then_the_deeper_then_the_older() -> None:
    """All paths that never fall share their f: without the ties the search would be breadth first."""
    tree = {"": {"a": 0.5, "b": 0.6}, "b": {"b1": 0.7, "b2": 0.6}, "b1": {"c": 0.7, "d": 0.7}, "c": {}, "d": {}}
    order, states = explore(tree)
    assert {round(state.f, 9) for state in states.values()} == {0.5}
    assert order == ["b", "b1", "c", "d", "b2", "a"]
    chain = {str(i or ""): {str(i + 1): 0.1 * i + 0.1 + 0.2, f"{i + 1}'": 0.5} for i in range(2, 6)}
    order, _ = explore({"": {"2": 0.5}, **chain})  # .1 + .2 is not .3: rounding must not part ties
    assert order[:5] == ["2", "3", "4", "5", "6"]


# The synthetic task: a hidden string of digits, one digit a step, scored by the share of the correct prefix.


def digits(
    length: int, choices: int, seed: int, noise: float = 0.0, **options: Any
) -> tuple[bool, Search[tuple[int, ...]]]:
    """Search for a hidden string; return whether it was found."""
    rng = random.Random(seed)
    hidden = tuple(rng.randrange(choices) for _ in range(length))
    search: Search[tuple[int, ...]] = Search(root=(), **options)
    while (state := search.pop()) is not None:
        for digit in rng.sample(range(choices), choices):
            text = (*state.item, digit)
            right = next((i for i, (a, b) in enumerate(zip(text, hidden, strict=False)) if a != b), len(text))
            score = min(1.0, max(0.0, right / length + rng.gauss(0, noise)))
            search.add(state, text, score, tokens=1, goal=len(text) == length)
        search.pay(tokens=choices, scored=choices)
    best, found = search.result()
    return found and best.item == hidden, search


def test_with_an_oracle_it_scores_k_children_for_each_digit() -> None:
    for seed in range(20):
        found, search = digits(6, 4, seed)
        assert found
        assert search.scored == search.tokens == 4 * 6


def test_with_a_noisy_oracle_it_needs_a_fraction_of_the_tokens_of_best_of_n() -> None:
    length, choices = 5, 4
    budgets = range(20, 400, 20)
    enough = next(
        budget
        for budget in budgets
        if sum(digits(length, choices, seed, 0.05, budget=Budget(tokens=budget))[0] for seed in range(50)) >= 45
    )
    # best-of-n with a perfect choice finds the string with probability 1 - (1 - k^-d)^n
    samples = math.ceil(math.log(0.1) / math.log(1 - choices**-length))
    assert enough * 4 < samples * length


def test_it_jumps_back_when_a_path_degrades() -> None:
    tree = {"": {"a": 0.9, "b": 0.8}, "a": {"a1": 0.3}, "b": {"b1": 0.85}}
    order, _ = explore(tree)
    assert order == ["a", "b", "b1", "a1"]


@pytest.mark.parametrize(("unit", "limit"), [("tokens", 40), ("scores", 40), ("expansions", 10)])
def test_a_budget_ends_the_search_with_the_best_partial_solution(unit: str, limit: int) -> None:
    found, search = digits(30, 4, 1, budget=Budget(**{unit: limit}))
    assert not found
    assert (search.tokens, search.scored, search.expanded) == (40, 40, 10)
    best, complete = search.result()
    assert not complete
    assert best.depth == 10
    assert best.value == pytest.approx(10 / 30)


def test_a_solution_that_was_found_before_the_budget_ended_counts() -> None:
    search = Search(root="", budget=Budget(expansions=1))
    root = search.pop()
    assert root is not None
    search.add(root, "promising", 0.9)
    search.add(root, "solved", 0.2, goal=True)
    assert search.pop() is None
    best, found = search.result()
    assert (best.item, found) == ("solved", True)


def test_it_goes_on_until_it_has_as_many_solutions_as_asked_for() -> None:
    tree = {"": {"good": 0.9, "better": 0.95}}
    for goals, expected in ((1, ["better"]), (2, ["better", "good"])):
        search = Search(root="", goals=goals)
        root = search.pop()
        assert root is not None
        for name, score in tree[""].items():
            search.add(root, name, score, goal=True)
        assert search.pop() is None
        assert [state.item for state in search._done] == expected
        assert search.result()[0].item == "better"


def test_a_path_as_deep_as_the_cap_is_dead_but_kept_for_want_of_better() -> None:
    lost: list[str] = []
    search = Search(root="", depth=2, forget=lost.append)
    root = search.pop()
    assert root is not None
    first = search.add(root, "a", 0.6)
    assert search.pop() is first
    search.add(first, "ab", 0.7)
    search.add(first, "ac", 0.8)
    search.add(first, "ad", 0.65)
    assert search.pop() is None
    best, found = search.result()
    assert (best.item, found) == ("ac", False)
    assert lost == ["ab", "ad"]


def test_the_frontier_keeps_the_smallest_f_and_lets_go_of_the_rest() -> None:
    lost: list[float] = []
    search = Search(root=0.0, frontier=3, forget=lost.append)
    root = search.pop()
    assert root is not None
    for score in (0.3, 0.1, 0.45, 0.2, 0.4):
        search.add(root, score, score)
    assert sorted(lost) == [0.1, 0.2]
    order = []
    while (state := search.pop()) is not None:
        order.append(state.item)
    assert order == [0.45, 0.4, 0.3]


def test_values_of_a_path() -> None:
    for aggregate, expected in (("last", 0.6), ("min", 0.2), ("product", 0.8 * 0.2 * 0.6)):
        search = Search(root=-1, aggregate=aggregate)
        for i, score in enumerate((0.8, 0.2, 0.6)):
            state = search.pop()
            assert state is not None
            child = search.add(state, i, score)
        assert child.value == pytest.approx(expected)
    assert smoothed((0.8, 0.2, 0.6)) == pytest.approx((0.8, 0.5, 0.4))
    _, states = explore({"": {"A": 0.8}, "A": {"A1": 0.2}}, smooth=True)
    assert states["A1"].value == pytest.approx(0.5), "one low score does not poison a path for ever"


@pytest.mark.parametrize("score", [math.nan, -0.01, 1.01, math.inf])
def test_a_score_that_is_no_probability_is_refused(score: float) -> None:
    search = Search(root="")
    root = search.pop()
    assert root is not None
    with pytest.raises(ThriftyError, match="from 0 to 1"):
        search.add(root, "a", score)


# On a model. A verifier of random weights means nothing, but it is one: everything but accuracy can be seen with it.


@pytest.fixture(scope="module")
def judge(pebble: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verifier")
    random_verifier(pebble, layer=3).save(folder)
    return folder


def solve(model: TorchModel, spec: str, count: int = 4, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 160, **values})
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def response(trace: Trace) -> tuple[int, ...]:
    return tuple(i for s in trace.segments if s.kind not in ("probe", "helper") for i in s.ids)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_one_child_a_step_is_vanilla(pebble64: TorchModel, judge: Path, step: str, temperature: float) -> None:
    plain = solve(pebble64, "vanilla", temperature=temperature)
    spec = f"astar-decoding(k=1,temperature=-1,step={step},verifier='{judge}')"
    searched = solve(pebble64, spec, temperature=temperature)
    assert {k: response(t) for k, t in searched.items()} == {k: response(t) for k, t in plain.items()}
    for key, trace in searched.items():
        for count in ("prompt", "thinking", "answer", "injected", "probe", "total"):
            assert getattr(trace.usage, count) == getattr(plain[key].usage, count)
        assert trace.stop_reason == plain[key].stop_reason
        assert trace.closed_by == plain[key].closed_by


def test_neither_batch_nor_order_changes_a_search(pebble64: TorchModel, judge: Path) -> None:
    spec = f"astar-decoding(k=3,step=line,tokens=250,verifier='{judge}')"
    alone, together = (solve(pebble64, spec, batch_size=size) for size in (1, 7))
    assert {k: (response(t), t.events) for k, t in alone.items()} == {
        k: (response(t), t.events) for k, t in together.items()
    }


def test_everything_that_was_written_is_in_the_account(pebble: TorchModel, judge: Path) -> None:
    for trace in solve(pebble, f"astar-decoding(k=3,step=line,verifier='{judge}')").values():
        noted = trace.events["astar-decoding"]
        usage = trace.usage
        assert usage.total == usage.prompt + noted["tokens"], "the prompt is read once, a kept state costs nothing"
        assert usage.generated == len(response(trace))
        assert usage.probe > 0
        assert noted["prm_calls"] <= 3 * noted["expanded"]
        assert len(noted["scores"]) <= noted["expanded"]
        assert all(0 <= score <= 1 for score in noted["scores"])
        side = [segment for segment in trace.segments if segment.kind == "probe"]
        assert len(side) >= noted["prm_calls"] - len(noted["scores"])


def test_a_verifier_of_another_model_is_a_helper(toy: TorchModel, judge: Path) -> None:
    for trace in solve(toy, f"astar-decoding(k=2,step_tokens=12,expansions=3,verifier='{judge}')", 2).values():
        noted, usage = trace.events["astar-decoding"], trace.usage
        assert noted["prm_calls"] == 6
        assert usage.helper > noted["prm_calls"] * usage.prompt, "prompt and response are read for each score"
        assert usage.total == usage.prompt + noted["tokens"] + usage.helper


def test_without_a_solution_the_best_partial_one_is_completed_once(pebble: TorchModel, judge: Path) -> None:
    spec = f"astar-decoding(k=2,step=line,expansions=1,verifier='{judge}')"
    for trace in solve(pebble, spec, max_tokens=300).values():
        noted = trace.events["astar-decoding"]
        assert (noted["expanded"], noted["incomplete"]) == (1, True)
        assert trace.answer_text.strip()
        assert len(noted["scores"]) == 1


def test_a_long_step_is_cut(pebble: TorchModel, judge: Path) -> None:
    for trace in solve(pebble, f"astar-decoding(k=2,step_tokens=10,expansions=2,verifier='{judge}')", 2).values():
        assert all(len(pebble.encode(s.text)) <= 12 for s in trace.segments if s.kind == "probe")
        assert trace.events["astar-decoding"]["expanded"] == 2


def test_it_composes_with_methods_that_force_tokens_at_the_end_of_a_step(pebble: TorchModel, judge: Path) -> None:
    spec = f"astar-decoding(k=2,step=line,verifier='{judge}')+cap(budget=24)"
    for trace in solve(pebble, spec, temperature=0.8).values():
        thinking = sum(len(s.ids) for s in trace.segments if s.phase == "thinking" and s.kind != "probe")
        assert thinking <= 24 + pebble.close_length
        assert trace.answer_text.strip()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("k=0", "k must be"),
        ("step=word", "paragraph, line, response"),
        ("cost=uniform", "consistent, greedy, neglog, length"),
        ("aggregate=mean", "last, min, product"),
        ("tokens=-1", "tokens must be"),
        ("temperature=0", "alike"),
        ("temperature=-3", "between 0 and 100"),
        ("depth=0", "depth must be"),
    ],
)
def test_options_out_of_range_are_refused(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(f"astar-decoding({options})")


def test_equal_children_are_refused_before_any_work(pebble: TorchModel, judge: Path) -> None:
    with pytest.raises(ThriftyError, match="at temperature 0 all 4 samples of a step are alike"):
        solve(pebble, f"astar-decoding(temperature=-1,verifier='{judge}')")


def test_a_missing_verifier_is_named_before_any_work(pebble: TorchModel) -> None:
    with pytest.raises(ThriftyError, match=r"no verifier 'nowhere'"):
        solve(pebble, "astar-decoding(verifier=nowhere)")
