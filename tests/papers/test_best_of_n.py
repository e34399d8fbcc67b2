"""Best-of-n: what each scorer chooses and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_majority import response, solve

from thrifty.decoding.gate import Gate
from thrifty.decoding.verifier import CLASSES, Verifier
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_one_sample_is_vanilla(toy: TorchModel, temperature: float) -> None:
    few: dict[str, Any] = {"count": 2, "max_tokens": 60, "temperature": temperature}
    plain, sampled = (solve(toy, s, **few) for s in ("vanilla", "best-of-n(samples=1,scorer=likelihood)"))
    assert {k: response(t) for k, t in plain.items()} == {k: response(t) for k, t in sampled.items()}
    for key, trace in sampled.items():
        assert trace.usage.total == plain[key].usage.total


@pytest.mark.parametrize("size", [1, 7])
def test_the_batch_changes_nothing(pebble64: TorchModel, size: int) -> None:
    def seen(batch_size: int) -> dict[str, Any]:
        spec = "best-of-n(samples=3,scorer=likelihood)"
        traces = solve(pebble64, spec, 2, max_tokens=60, temperature=0.8, batch_size=batch_size)
        return {k: (response(t), t.usage.total, t.events) for k, t in traces.items()}

    assert seen(size) == seen(4)


def test_the_shortest_sample_with_an_answer_is_chosen(pebble: TorchModel) -> None:
    lengths = set()
    for trace in solve(pebble, "best-of-n(samples=3)", max_tokens=700, temperature=0.9).values():
        noted = trace.events["best-of-n"]
        answered = [s for s, a in zip(noted["scores"], noted["answers"], strict=True) if a is not None]
        assert -len(response(trace)) == max(answered)
        lengths.update(noted["scores"])
    assert len(lengths) > 4, "samples of different lengths"


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
    scores = []
    for key, trace in solve(pebble, spec, temperature=0.9).items():
        noted = trace.events["best-of-n"]
        allowed = [s for s, a in zip(noted["scores"], noted["answers"], strict=True) if a is not None]
        assert noted["scores"][noted["chosen"]] == max(allowed or noted["scores"][:1])
        assert trace.usage.total == shortest[key].usage.total
        problem = next(p for p in load_task("mix").problems(limit=4, seed=5) if p.id == key)
        ids = [*pebble.encode_prompt(pebble.render(problem.messages)), *response(trace)]
        with torch.inference_mode(), pebble.tap([verifier.layer]) as seen:
            pebble.network(torch.tensor([ids]))
        expected = float(verifier.gate.probabilities(seen[verifier.layer][:, -1])[0, 1])
        assert noted["scores"][noted["chosen"]] == pytest.approx(expected, abs=1e-4)
        scores.append(noted["scores"])
    assert any(max(row) > min(row) and row.index(max(row)) for row in scores), "some choice must not be the first"


@pytest.mark.parametrize(
    ("spec", "message"),
    [("best-of-n(samples=0)", "samples"), ("best-of-n(scorer=longest)", "shortest")],
)
def test_mistakes_get_one_line(spec: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(spec)


def test_a_missing_verifier_is_refused_before_any_work(pebble: TorchModel, tmp_path: Path) -> None:
    with pytest.raises(ThriftyError, match="no verifier"):
        get_method(f"best-of-n(scorer=verifier,verifier='{tmp_path}')").check(pebble)
