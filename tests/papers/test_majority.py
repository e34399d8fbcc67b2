"""Majority and best-of-n: what is chosen, what it costs, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from thrifty.decoding.gate import Gate
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.models.verifier import CLASSES, Verifier
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
@pytest.mark.parametrize("method", ["majority", "majority(early=true)", "best-of-n", "best-of-n(scorer=likelihood)"])
def test_one_sample_is_vanilla(toy: TorchModel, method: str, temperature: float) -> None:
    name, _, options = method.partition("(")
    spec = f"{name}(samples=1,{options or ')'}".replace(",)", ")")
    plain, sampled = (solve(toy, s, temperature=temperature) for s in ("vanilla", spec))
    assert {k: response(t) for k, t in plain.items()} == {k: response(t) for k, t in sampled.items()}
    for key, trace in sampled.items():
        assert trace.usage.total == plain[key].usage.total


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("method", ["majority", "majority(samples=4,early=true)", "best-of-n(scorer=likelihood)"])
def test_the_batch_changes_nothing(pebble64: TorchModel, method: str, size: int) -> None:
    def seen(traces: dict[str, Trace]) -> dict[str, Any]:
        return {k: (response(t), t.usage.total, t.events) for k, t in traces.items()}

    assert seen(solve(pebble64, method, 2, batch_size=size)) == seen(solve(pebble64, method, 2, batch_size=3))


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
    full, early = (solve(pebble, f"majority(samples=5,early={e})", 12, temperature=0.9) for e in ("false", "true"))
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


def test_the_shortest_sample_with_an_answer_is_chosen(pebble: TorchModel) -> None:
    lengths = set()
    for trace in solve(pebble, "best-of-n", max_tokens=300, temperature=0.9).values():
        noted = trace.events["best-of-n"]
        answered = [s for s, a in zip(noted["scores"], noted["answers"], strict=True) if a is not None]
        assert -len(response(trace)) == max(answered)
        lengths.update(noted["scores"])
    assert len(lengths) > 4


def test_likelihood_choice_is_that_of_a_pass_over_the_text(toy: TorchModel) -> None:
    for trace in solve(toy, "best-of-n(samples=3,scorer=likelihood)", temperature=0.9).values():
        noted = trace.events["best-of-n"]
        prompt = next(p for p in load_task("mix").problems(limit=4, seed=5) if p.id == trace.problem_id)
        ids = [*toy.encode_prompt(toy.render(prompt.messages)), *response(trace)]
        logits = toy.network(torch.tensor([ids])).logits[0, :, : toy.vocabulary_size].log_softmax(-1)
        free = [i for s in trace.segments if s.kind != "probe" for i in [s.kind != "injected"] * len(s.ids)]
        begins = len(ids) - len(free)
        values = [float(logits[begins + i - 1, ids[begins + i]].detach()) for i, chosen in enumerate(free) if chosen]
        assert noted["scores"][noted["chosen"]] == pytest.approx(sum(values) / len(values), abs=1e-5)
        assert all(a is None for a in noted["answers"]) or noted["answers"][noted["chosen"]] is not None


def random_head(model: TorchModel, folder: Path) -> Verifier:
    """Write a verifier whose head is random: who is chosen shows whether its scores are used."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(2, model.hidden_size, generator=generator) / 40
    zero, one = torch.zeros(model.hidden_size), torch.ones(model.hidden_size)
    verifier = Verifier.of(model, Gate(CLASSES, model.layers, zero, one, weights, torch.zeros(2)))
    verifier.save(folder)
    return verifier


def test_a_verifier_on_the_models_own_states_costs_nothing(pebble: TorchModel, tmp_path: Path) -> None:
    verifier = random_head(pebble, tmp_path)
    spec = f"best-of-n(samples=4,scorer=verifier,verifier='{tmp_path}')"
    shortest = solve(pebble, "best-of-n(samples=4)", temperature=0.9)
    chosen = []
    for key, trace in solve(pebble, spec, temperature=0.9).items():
        noted = trace.events["best-of-n"]
        allowed = [s for s, a in zip(noted["scores"], noted["answers"], strict=True) if a is not None]
        assert noted["scores"][noted["chosen"]] == max(allowed or noted["scores"][:1])
        assert 0 < min(noted["scores"]) < max(noted["scores"]) < 1
        assert trace.usage.total == shortest[key].usage.total
        problem = next(p for p in load_task("mix").problems(limit=4, seed=5) if p.id == key)
        ids = [*pebble.encode_prompt(pebble.render(problem.messages)), *response(trace)]
        with torch.inference_mode(), pebble.tap([verifier.layer]) as seen:
            pebble.network(torch.tensor([ids]))
        expected = float(verifier.gate.probabilities(seen[verifier.layer][:, -1])[0, 1])
        assert noted["scores"][noted["chosen"]] == pytest.approx(expected, abs=1e-4)
        chosen.append(noted["chosen"])
    assert any(i != 0 for i in chosen)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("majority(samples=0)", "samples"),
        ("majority(temperature=0.0)", "temperature"),
        ("best-of-n(samples=0)", "samples"),
        ("best-of-n(scorer=longest)", "shortest"),
        ("majority+best-of-n", "several calls"),
    ],
)
def test_mistakes_get_one_line(spec: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(spec)


def test_a_missing_verifier_is_refused_before_any_work(pebble: TorchModel, tmp_path: Path) -> None:
    with pytest.raises(ThriftyError, match="no verifier"):
        get_method(f"best-of-n(scorer=verifier,verifier='{tmp_path}')").check(pebble)


def test_methods_that_steer_one_stream_steer_every_sample(pebble: TorchModel) -> None:
    for trace in solve(pebble, "majority(samples=3)+cap(budget=20)").values():
        assert trace.usage.thinking <= 3 * 30
        assert trace.method == "majority(samples=3)+cap(budget=20)"
