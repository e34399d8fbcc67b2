"""What every method must pass, found through the registry so that no method can be forgotten."""

from __future__ import annotations

import dataclasses
import inspect
from itertools import combinations, product
from typing import Any

import pytest

from tests_helpers import TextOnly
from thrifty.catalogue import CATALOGUE, Need, status
from thrifty.errors import MissingAccess, ThriftyError
from thrifty.methods import get_method, list_methods, method_class
from thrifty.methods.base import FlowMethod, Method
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.think import THINK_FORMATS
from thrifty.traces.trace import Trace

METHODS = list_methods()
NO_OP = {
    "vanilla": "vanilla",
    "cap": "cap(budget=-1)",
    "s1": "s1(maximum=-1)",
    "cgrs": "cgrs(delta=1)",
    "first-try": "first-try(tries=0)",
    "concisehint": "concisehint(hint='')",
    "tldr": "tldr(temperature=1.0)",
    "arm": "arm(mode=adaptive)",
    "e2c": "e2c(plans=0)",
    "majority": "majority(samples=1)",
    "best-of-n": "best-of-n(samples=1)",
    "astar-decoding": "astar-decoding(k=1,step=response,temperature=-1)",
    "particle-filtering": "particle-filtering(particles=1,step=response,temperature=-1)",
    "latent-trajectory": "latent-trajectory(samples=1)",
    "diffadapt": "diffadapt(strategy=plain)",
    "metacognitive-reuse": "metacognitive-reuse(rounds=0)",
    "plan-and-budget": "plan-and-budget(mode='vanilla')",
    "thoughtmani": "thoughtmani(thought='none')",
    "stand": "stand(nodes=0)",
    "prompt-lookup": "prompt-lookup(tokens=0)",
    "r2r": "r2r(threshold=0)",
    "foreal": "foreal(n=128)",
    "group-think": "group-think(thinkers=1)",
    "hawkeye": "hawkeye(small='',ask=none)",
    "long-short": "long-short(short='')",
    "soft-thinking": "soft-thinking(n=0)",
    "swireasoning": "swireasoning(mode=explicit)",
    "delta": "delta(pages=10000)",
    "lazyeviction": "lazyeviction(budget=1.0)",
    "h2o": "h2o(budget=1.0)",
    "sliding-window": "sliding-window(budget=1.0)",
    "random-eviction": "random-eviction(budget=1.0)",
}
"""The setting in which a method must equal vanilla token for token."""
WITHOUT_NO_OP = {"no-think": "it always writes the empty think block"}
RUNS_AS = {
    "majority": "majority(samples=2)",
    "best-of-n": "best-of-n(samples=2)",
    "latent-trajectory": "latent-trajectory(samples=2,window=24,threshold=6.0)",
    "astar-decoding": "astar-decoding(k=2)",
    "particle-filtering": "particle-filtering(particles=2)",
    "concisehint": "concisehint(alpha=24)",
    "diffadapt": "diffadapt(strategy='easy')",
    "plan-and-budget": "plan-and-budget(planner_tokens=40,retries=0)",
    "r2r": "r2r(strategy=entropy)",
    "delta": "delta(page=4,pages=8,recent=2)",
    "lazyeviction": "lazyeviction(window=8,budget=0.8)",
    "h2o": "h2o(budget=0.8)",
    "sliding-window": "sliding-window(budget=0.9)",
    "random-eviction": "random-eviction(budget=0.9)",
}
"""For methods that by default need what `thrifty tune` wrote for the model, longer responses or much time."""
FEWER_PASSES = ("group-think", "stand", "prompt-lookup", "r2r", "foreal")
"""Methods by which the model writes several tokens a pass, or leaves some to another model."""
CARD_DEFAULTS: dict[str, dict[str, Any]] = {
    "long-short": {"turn_tokens": 2048, "temperature": 0.3},
    "group-think": {"temperature": 0.7},
    "soft-thinking": {"n": 10, "temperature": 0.6, "top_k": 30, "top_p": 0.95, "min_p": 0.001, "tau": 0.01},
    "swireasoning": {"window": 512, "beta": 0.7, "answer_tokens": 32},
    "stand": {"orders": (4, 3, 2)},
    "foreal": {"n": 15, "p": 1.0},
    "diffadapt": {"easy_budget": 0.4, "normal_budget": 1.0, "hard_budget": 0.5, "easy_temperature": 0.5},
    "arm": {"mode": "adaptive"},
    "e2c": {"plans": 4, "clusters": 0, "plan_temperature": 1.0, "temperature": 0.0},
    "cgrs": {"delta": 0.9, "probe_tokens": 20},
    "concisehint": {"alpha": 128, "beta": 0.2, "cap": 1024, "adap": False},
    "tldr": {"mode": "shifted", "min_think_tokens": 0},
    "first-try": {"tries": 1, "reflective_tries": 3, "theta_c": 0.5, "theta_q": 0.05},
    "astar-decoding": {"k": 4, "step": "paragraph", "step_tokens": 512, "temperature": 0.8, "depth": 40, "goals": 1},
    "latent-trajectory": {"samples": 5, "window": 500, "checkpoint": 2000, "divisor": "paper", "merge": False},
    "plan-and-budget": {"budgets": (200, 250, 350, 450, 600), "temperature": 0.1, "retries": 5},
    "thoughtmani": {"cap": 512, "on_decline": "native", "keep_answers": False},
    "metacognitive-reuse": {"k": 40, "retrieval": "topic", "rounds": 1, "pool": False},
    "delta": {"page": 16, "pages": 64, "recent": 8, "warm_up": 2, "start": 1.0},
    "lazyeviction": {"budget": 0.5, "window": 175, "alpha": 1e-4},
}


def solve(
    model: TorchModel, spec: str, batch_size: int = 8, temperature: float = 0.0, count: int = 4, max_tokens: int = 160
) -> dict[str, Trace]:
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=9), 1)
    settings = Settings(max_tokens=max_tokens, batch_size=batch_size, temperature=temperature)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    return {k: [(s.kind, s.ids) for s in t.segments] for k, t in traces.items()}


def test_available_methods_are_those_whose_module_exists() -> None:
    listed = {s for s, e in CATALOGUE.items() if e.module.startswith("thrifty.methods.") and status(e) == "available"}
    assert listed == set(METHODS)
    assert {"vanilla", "no-think", "cap", "s1", "cgrs", "first-try"} <= listed


@pytest.mark.parametrize("slug", METHODS)
def test_is_documented_and_belongs_to_its_entry(slug: str) -> None:
    cls = method_class(slug)
    entry = cls.entry()
    assert cls.slug == slug == entry.slug
    assert cls.needs == entry.needs
    text = inspect.getdoc(cls) or ""
    if entry.kind == "published":
        assert entry.paper is not None
        assert f"arXiv {entry.paper.arxiv}" in text
        assert f"card ``{slug}``" in text
    fields = dataclasses.fields(cls)
    for field in fields:
        assert f"{field.name}:" in text, f"option {field.name} is not described"
        assert field.default is not dataclasses.MISSING
    assert len(text.splitlines()[0]) > 20


@pytest.mark.parametrize("slug", sorted(CARD_DEFAULTS))
def test_defaults_are_those_of_the_card(slug: str) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(method_class(slug))}
    assert CARD_DEFAULTS[slug].items() <= defaults.items()


@pytest.mark.parametrize("slug", METHODS)
def test_has_a_no_op_setting_that_equals_vanilla(slug: str, pebble: TorchModel) -> None:
    if slug in WITHOUT_NO_OP:
        return
    for temperature in (0.0, 0.9):
        plain = solve(pebble, "vanilla", temperature=temperature)
        assert ids(solve(pebble, NO_OP[slug], temperature=temperature)) == ids(plain)


@pytest.mark.parametrize("slug", METHODS)
def test_is_deterministic_and_does_not_depend_on_the_batch(slug: str, pebble64: TorchModel) -> None:
    results = [ids(solve(pebble64, RUNS_AS.get(slug, slug), size, 0.7, count=3, max_tokens=90)) for size in (1, 3)]
    assert results[0] == results[1]


@pytest.mark.parametrize("slug", METHODS)
def test_usage_adds_up_and_traces_survive_json(slug: str, pebble: TorchModel) -> None:
    for trace in solve(pebble, RUNS_AS.get(slug, slug)).values():
        usage = trace.usage
        counted = {
            kind: sum(len(s.ids) for s in trace.segments if s.kind == kind)
            for kind in ("thinking", "answer", "injected")
        }
        spent = {"thinking": usage.thinking, "answer": usage.answer, "injected": usage.injected}
        if issubclass(method_class(slug), FlowMethod):  # samples that were not chosen are in the account only
            assert all(counted[kind] <= spent[kind] for kind in spent)
        else:
            assert counted == spent
            assert usage.generated <= 160 or slug == "group-think"  # the limit holds for each of its threads
        aside = usage.probe + usage.helper + usage.reread + usage.latent_steps
        assert usage.total == usage.prompt + usage.generated + aside
        if slug not in FEWER_PASSES:
            assert usage.forward_passes >= usage.thinking + usage.answer  # what a method wrote may be read at once
        assert usage.flops > 0
        assert usage.wall_seconds > 0
        assert trace.answer_text.strip(), "an answer never comes back empty"
        assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize("slug", METHODS)
def test_refuses_a_model_without_the_access_it_needs(slug: str) -> None:
    method = get_method(slug)
    if method.needs == Need.TEXT:
        method.check(TextOnly())
        return
    with pytest.raises(MissingAccess, match=slug) as refusal:
        method.check(TextOnly())
    assert (method.needs & ~Need.TEXT).names[0] in str(refusal.value)


@pytest.mark.parametrize("slug", METHODS)
def test_a_spec_makes_the_method_again(slug: str) -> None:
    method = get_method(slug)
    assert method.spec == slug
    assert get_method(method.spec).parts == method.parts


ALONE = [m for m in METHODS if method_class(m).solve is not Method.solve]
STEERING = [m for m in METHODS if m not in ("vanilla", "no-think", *ALONE)]
CORE = ("cap", "cgrs", "first-try", "concisehint", "tldr")
"""Each in a way of its own: forces a close, probes on the side, watches, rewrites the past, changes a probability."""


def test_a_method_stands_once_in_a_composition_and_flows_do_not_nest() -> None:
    for first, second in product(STEERING, repeat=2):
        if first == second:
            with pytest.raises(ThriftyError, match="twice"):
                get_method(f"{first}+{second}")
        elif all(issubclass(method_class(slug), FlowMethod) for slug in (first, second)):
            with pytest.raises(ThriftyError, match="several calls"):
                get_method(f"{first}+{second}")


@pytest.mark.parametrize(
    ("first", "second"),
    [pair for pair in combinations(STEERING, 2) if any(slug in CORE for slug in pair)],
)
def test_steering_methods_compose(first: str, second: str, pebble: TorchModel) -> None:
    both = "+".join(RUNS_AS.get(slug, slug) for slug in (first, second))
    traces = solve(pebble, both, count=3, max_tokens=100)
    assert len(traces) == 3
    assert {t.method for t in traces.values()} == {get_method(both).spec}
    assert all(t.answer_text.strip() for t in traces.values())


def test_a_method_on_think_blocks_refuses_a_model_without(pebble: TorchModel) -> None:
    plain = TorchModel(pebble.network, pebble.tokenizer, "plain", THINK_FORMATS["none"])
    get_method("vanilla").check(plain)
    for slug in METHODS:
        if method_class(slug).thinks:
            with pytest.raises(ThriftyError, match="--think"):
                get_method(slug).check(plain)
