"""STAND: the card's worked numbers, that it loses nothing, and that it saves passes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thrifty.decoding.artefact import Artefact
from thrifty.decoding.draft import choose_drafted
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.sampling import Sampler, uniforms
from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods import get_method
from thrifty.methods.collaborate.stand import STAND, STREAM, TreeDrafter, drawn_order, foreseen
from thrifty.methods.tuning import Tuning
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem, Trace

P, Q = torch.tensor([0.5, 0.3, 0.2]), np.array([0.6, 0.4, 0.0])


def solve(
    model: TorchModel, spec: str, count: int = 3, samples: int = 1, seed: int = 5, **values: Any
) -> dict[tuple[str, int], Trace]:
    settings = Settings(**{"max_tokens": 90, "batch_size": 4, **values})
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=seed), samples)
    return {(t.problem_id, t.sample): t for t in get_method(spec).solve(model, jobs, settings)}


def written(traces: dict[tuple[str, int], Trace]) -> dict[tuple[str, int], Any]:
    return {k: ([(s.kind, s.ids) for s in t.segments], t.stop_reason, t.usage.total) for k, t in traces.items()}


def told(traces: dict[tuple[str, int], Trace]) -> Counter[str]:
    return sum((Counter(t.events["stand"]) for t in traces.values()), Counter())


def passes(traces: dict[tuple[str, int], Trace]) -> int:
    return sum(t.usage.forward_passes for t in traces.values())


# -- Worked numbers ----------------------------------------------------------------------------------------------


def draws(count: int, width: int) -> np.ndarray[Any, Any]:
    keys = np.arange(count, dtype=np.uint64)[:, None] + np.zeros(width, dtype=np.uint64)
    return uniforms(keys, np.arange(width, dtype=np.uint64) + np.zeros_like(keys), STREAM)


def test_gumbel_top_k_draws_without_replacement() -> None:
    n = 40_000
    q = np.array([0.7, 0.2, 0.1])
    orders = drawn_order(np.tile(q, (n, 1)), draws(n, 3))
    pairs = Counter(map(tuple, orders[:, :2].tolist()))
    expected = {(a, b): q[a] * q[b] / (1 - q[a]) for a in range(3) for b in range(3) if a != b}
    assert expected[0, 1] == pytest.approx(0.4667, abs=1e-4)
    assert pairs[0, 1] / n == pytest.approx(0.4667, abs=0.01)
    assert sum((pairs[k] - n * p) ** 2 / (n * p) for k, p in expected.items()) < 25.7  # .01% of the time by chance
    assert (drawn_order(np.tile(Q, (99, 1)), draws(99, 3))[:, 2] == 2).all(), "what cannot be drawn comes last"


def test_nothing_is_lost_whatever_is_drafted() -> None:
    n = 20_000
    found: Counter[tuple[int, int]] = Counter()
    for key, order in enumerate(drawn_order(np.tile(Q, (n, 1)), draws(n, 3))[:, :2].tolist()):
        found[order[0], choose_drafted(P, order, {0: 0.6, 1: 0.4}, key, 0)] += 1
    tokens = [found[0, x] + found[1, x] for x in range(3)]
    assert sum((tokens[x] - n * float(P[x])) ** 2 / (n * float(P[x])) for x in range(3)) < 18.4  # likewise
    # behind 0, drawn first, stands it with .8333, else token 2; behind 1 it with .75, else token 2
    first = [sum(found[order, x] for x in range(3)) for order in (0, 1)]
    assert found[0, 0] / first[0] == pytest.approx(0.8333, abs=0.015)
    assert found[1, 1] / first[1] == pytest.approx(0.75, abs=0.02)
    assert found[0, 1] == found[1, 0] == 0


def test_a_stochastic_draft_is_accepted_more_often_than_a_deterministic_one() -> None:
    n = 8000
    first = drawn_order(np.tile(Q, (n, 1)), draws(n, 3))[:, 0].tolist()
    stochastic = sum(choose_drafted(P, [x], {0: 0.6, 1: 0.4}, key, 0) == x for key, x in enumerate(first))
    deterministic = sum(choose_drafted(P, [0], {0: 1.0}, key, 0) == 0 for key in range(n))
    assert stochastic / n == pytest.approx(0.8, abs=0.02)  # the sum of min(p, q)
    assert deterministic / n == pytest.approx(0.5, abs=0.02)


def test_the_foreseen_token_is_the_sampled_one_where_the_table_is_right() -> None:
    tokens = np.array([[4, 0, 2, -1]], dtype=np.int32).repeat(500, 0)
    q = np.array([[0.5, 0.3, 0.2, 0.0]]).repeat(500, 0)
    logits = torch.full((500, 6), -torch.inf, dtype=torch.float64)
    logits[:, [4, 0, 2]] = torch.from_numpy(q[:, :3]).log()
    keys, counters = np.arange(500, dtype=np.uint64), np.full(500, 3, dtype=np.uint64)
    sampler = Sampler.of([Settings(temperature=1.0)] * 500, torch.device("cpu"))
    places = foreseen(tokens, q, uniforms(keys, counters))
    assert tokens[np.arange(500), places].tolist() == sampler.choose(logits, keys, counters).tolist()
    assert set(places.tolist()) == {0, 1, 2}


# -- The same responses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("spec", ["vanilla", "cap(budget=30)", "cgrs", "first-try", "concisehint(alpha=24)"])
def test_the_response_is_the_same_token_for_token(pebble64: TorchModel, spec: str, temperature: float) -> None:
    plain = solve(pebble64, spec, 2, 2, temperature=temperature)
    for stand in ("stand", "stand(nodes=12,minimum=0.0,share=run)"):
        drafted = solve(pebble64, stand if spec == "vanilla" else f"{spec}+{stand}", 2, 2, temperature=temperature)
        assert written(plain) == written(drafted)
        assert passes(drafted) < passes(plain)
        counts = told(drafted)
        assert 0 < counts["accepted"] <= counts["drafted"]


def test_greedy_responses_are_the_same_with_rejection(pebble64: TorchModel) -> None:
    plain, drafted = (solve(pebble64, spec, 2) for spec in ("vanilla", "stand(verification=rejection)"))
    assert written(plain) == written(drafted)
    assert told(drafted)["accepted"] > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_samples_of_a_vote_are_the_same(pebble64: TorchModel, temperature: float) -> None:
    plain, drafted = (
        solve(pebble64, spec, 2, temperature=temperature)
        for spec in ("majority(samples=3)", "majority(samples=3)+stand")
    )
    for key, trace in plain.items():
        assert [s for s in trace.segments if s.kind != "probe"] == [
            s for s in drafted[key].segments if s.kind != "probe"
        ]
        assert trace.events["majority"] == drafted[key].events["majority"]
        assert trace.usage.total == drafted[key].usage.total
    assert passes(drafted) < passes(plain)


def test_no_nodes_are_the_plain_model(toy: TorchModel) -> None:
    plain, none = (solve(toy, spec, 2, max_tokens=40, temperature=0.9) for spec in ("vanilla", "stand(nodes=0)"))
    assert written(plain) == written(none)
    assert passes(plain) == passes(none)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_batch_changes_no_token(pebble64: TorchModel, samples: int) -> None:
    # what rejection samples depends on the drafts, and these on the other samples
    spec = "stand" if samples > 1 else "stand(verification=rejection)"
    one, other = (solve(pebble64, spec, 2, samples, temperature=0.8, batch_size=n) for n in (1, 5))
    assert written(one) == written(other)
    assert told(one)["accepted"] > 0


def likely_responses(model: TorchModel, prompt: list[int], settings: Settings) -> dict[tuple[int, ...], float]:
    """Return every response of a few tokens with its probability, worked out from the model itself."""
    sampler = Sampler.of([settings], model.device)
    paths: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(settings.max_tokens):
        grown: dict[tuple[int, ...], float] = {}
        for path, chance in paths.items():
            if path and path[-1] in model.eos_ids:
                grown[path] = chance
                continue
            session = Session(model)
            session.add([[*prompt, *path]])
            for token, p in enumerate(sampler.probabilities(session.logits)[0].tolist()):
                if p > 0:
                    grown[(*path, token)] = chance * p
        paths = grown
    return paths


def test_what_rejection_samples_is_distributed_as_without(toy: TorchModel) -> None:
    settings = Settings(
        max_tokens=4, temperature=1.5, top_k=3, batch_size=64, answer_reserve=0, loop_stop=False, seed=3
    )
    problems = [Problem.ask("What is 1 + 1?", id="sum"), Problem.ask("Sort: 3, 1, 2", id="order")]
    # one table of single tokens for two questions is often wrong about both, which is when the rule matters
    drafter = TreeDrafter(STAND(verification="rejection", share="run", orders=(1,), nodes=6, minimum=0.0))
    n = 2500
    plans = ((job, Plan(toy.render(job.problem.messages), drafter=drafter)) for job in jobs_for(problems, n))
    rows = list(decode_rows(toy, plans, settings))
    counts = sum((Counter(row.events["stand"]) for row in rows), Counter[str]())
    assert n / 4 < counts["accepted"] < 0.7 * counts["drafted"], "both happens, acceptance and rejection"
    for problem in problems:
        found = Counter(tuple(row.ids) for row in rows if row.job.problem is problem)
        expected = likely_responses(toy, toy.encode_prompt(toy.render(problem.messages)), settings)
        assert set(found) <= set(expected)
        common = {path: n * p for path, p in expected.items() if n * p >= 8}
        chi_square = sum((found[path] - wanted) ** 2 / wanted for path, wanted in common.items())
        assert len(common) >= 8
        # mean and deviation of chi-square are its degrees of freedom k and sqrt(2 k)
        assert chi_square < len(common) + 4.5 * (2 * len(common)) ** 0.5, problem.id


# -- Fewer passes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verification", ["match", "rejection"])
def test_more_samples_of_a_problem_take_fewer_passes_each(pebble: TorchModel, verification: str) -> None:
    spec = f"stand(verification={verification},nodes=8)"
    alone, together = (
        solve(pebble, spec, 2, samples, temperature=0.7, batch_size=1, max_tokens=120) for samples in (1, 4)
    )
    speed = [sum(t.usage.generated for t in traces.values()) / passes(traces) for traces in (alone, together)]
    assert speed[1] > 1.15 * speed[0] > 1.15
    for trace in together.values():
        noted = trace.events["stand"]
        assert noted["drafted"] - noted["accepted"] <= trace.usage.drafted <= noted["drafted"]


def test_the_account_holds_what_was_drafted_in_vain(pebble: TorchModel) -> None:
    plain, drafted = (solve(pebble, spec, 2, 2, temperature=0.7) for spec in ("vanilla", "stand"))
    for trace in drafted.values():
        assert trace.usage.generated == trace.usage.thinking + trace.usage.answer + trace.usage.injected
    assert sum(t.usage.drafted for t in drafted.values()) > 0
    assert sum(t.usage.flops for t in drafted.values()) > 0.9 * sum(t.usage.flops for t in plain.values())


def test_a_row_whose_drafts_do_not_pay_pauses(pebble: TorchModel) -> None:
    eager, choosy = (solve(pebble, f"stand(minimum={m})", 2, 2, temperature=0.8) for m in (0.0, 0.95))
    assert told(eager)["pauses"] == 0
    assert told(choosy)["pauses"] > 0
    assert 0 < told(choosy)["drafted"] < told(eager)["drafted"]


def test_problems_take_turns_so_that_samples_learn_from_each_other(toy: TorchModel) -> None:
    problems = load_task("mix").problems(limit=3, seed=5)
    drafter = TreeDrafter(STAND())
    settings = Settings(max_tokens=2, batch_size=3, answer_reserve=0)
    jobs = list(jobs_for(problems, 2))

    def order(drafter: TreeDrafter | None) -> list[tuple[int, int]]:
        plans = ((job, Plan(toy.render(job.problem.messages), drafter=drafter)) for job in jobs)
        places = {job.problem.id: i for i, job in enumerate(jobs[::2])}
        return [(places[row.job.problem.id], row.job.sample) for row in decode_rows(toy, plans, settings)]

    assert {problem for problem, _ in order(drafter)[:3]} == {0, 1, 2}
    assert {problem for problem, _ in order(None)[:3]} == {0, 1}
    assert sorted(order(drafter)) == sorted(order(None))


# -- Tuning ------------------------------------------------------------------------------------------------------


def test_tuning_finds_a_tree_that_is_accepted_at_least_as_often(pebble: TorchModel, tmp_path: Path) -> None:
    options = {"nodes": 12, "samples": 2, "temperature": 0.7}
    tuning = Tuning("stand", pebble, load_task("mix"), Settings(max_tokens=60, batch_size=8), 10, options)
    artefact = STAND.tune(tuning)
    assert artefact.settings["nodes"] == 12
    assert artefact.report["drafts"] > 0
    for size in artefact.report["tokens_per_drafting_pass"].values():
        assert size["tuned"] >= size["as given"] > 1
    path = artefact.save(tmp_path / "tree.json")[0]
    tree = json.loads(path.read_text())["values"]["tree"]
    method = STAND(tree=str(path), nodes=3)
    method.check(pebble)
    assert len(method.shape.parents) == 4
    assert tree[0] == [0]
    plain, tuned = (solve(pebble, spec, 2, 2) for spec in ("vanilla", f"stand(tree='{path}',nodes=3)"))
    assert {k: t.answer for k, t in plain.items()} == {k: t.answer for k, t in tuned.items()}
    assert passes(tuned) < passes(plain)


def test_where_nothing_is_accepted_there_is_nothing_to_tune(toy: TorchModel) -> None:
    tuning = Tuning("stand", toy, load_task("mix"), Settings(max_tokens=2), 10, {"samples": 1, "nodes": 1})
    with pytest.raises(ThriftyError, match="no drafted token was accepted"):
        STAND.tune(tuning)


def test_a_broken_tree_is_refused_before_any_work(pebble: TorchModel, tmp_path: Path) -> None:
    path = Artefact("stand", {}, {}, {"tree": [[0, 0]]}).save(tmp_path / "broken.json")[0]
    with pytest.raises(ThriftyError, match="lacks its parent"):
        get_method(f"stand(tree='{path}')").check(pebble)
    with pytest.raises(ThriftyError, match="there is no"):
        get_method(f"stand(tree='{tmp_path / 'absent.json'}')").check(pebble)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("stand(verification=maybe)", UnknownName, "verification of stand"),
        ("stand(share=all)", UnknownName, "share of stand"),
        ("stand(nodes=-1)", ThriftyError, "nodes must be between"),
        ("stand(orders=())", ThriftyError, "orders must be"),
        ("stand(orders=(4,0))", ThriftyError, "orders must be"),
        ("stand(minimum=1.0)", ThriftyError, "minimum must be"),
        ("stand+prompt-lookup", ThriftyError, "both draft"),
    ],
)
def test_mistakes_get_one_line(spec: str, error: type[ThriftyError], message: str) -> None:
    with pytest.raises(error, match=message) as refusal:
        get_method(spec)
    assert "\n" not in str(refusal.value)
