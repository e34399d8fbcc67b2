"""Features of gates: the states that a plain forward pass gives, and entropies of the raw distributions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from thrifty.decoding.controller import Controller
from thrifty.decoding.features import MeanEntropy, prompt_states
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.probe import entropy
from thrifty.decoding.row import Row
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem


def test_entropies_of_the_card_of_diffadapt() -> None:
    rows = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]]).log()
    assert entropy(rows).tolist() == pytest.approx([1.3863, 0.0], abs=1e-4)
    assert float(entropy(rows).mean()) == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize("layer", [0, 2])
def test_prompt_states_are_those_of_a_plain_forward_pass(toy: TorchModel, layer: int) -> None:
    problems = [*load_task("mix").problems(limit=5, seed=3), Problem.ask("7"), Problem.ask("8")]
    states = prompt_states(toy, problems, layer, Settings(batch_size=3))
    assert states.shape == (7, toy.hidden_size)
    for problem, state in zip(problems, states, strict=True):
        ids = torch.tensor([toy.encode_prompt(toy.render(problem.messages))])
        with torch.inference_mode():
            behind_layers = toy.network(ids, output_hidden_states=True).hidden_states
            # the library's last state is that behind the final norm
            wanted = behind_layers[layer][0, -1] if layer < toy.layers else None
            if wanted is None:
                normed = toy.network.model.norm(state.to(toy.dtype))
                assert torch.allclose(normed.float(), behind_layers[-1][0, -1].float(), atol=1e-4)
            else:
                assert torch.allclose(state, wanted.float(), atol=1e-5)


def test_mean_entropy_is_that_of_the_distributions_drawn_from(toy: TorchModel) -> None:
    seen: list[float] = []

    class Force(Controller):
        def after_token(self, rows: Sequence[Row], batch: object) -> None:
            for row in rows:
                if len(row.ids) == 5:
                    row.force("7 7")

    class Note(Controller):
        def adjust_logits(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
            (row,) = rows
            if not row.forced:
                probabilities = torch.softmax(logits[0], -1)
                seen.append(-float((probabilities * probabilities.clamp(min=1e-300).log()).sum()))
            return logits

    settings = Settings(max_tokens=20, temperature=2.0, loop_stop=False)
    plan = Plan(toy.render(Problem.ask("1 + 1").messages), [MeanEntropy(), Note(), Force()])
    (trace,) = decode(toy, [Job(Problem.ask("1 + 1"))], settings, lambda _: plan, "test")
    total, count = trace.events["entropy"]
    assert count == len(seen) == 20 - trace.usage.injected
    assert trace.usage.injected >= 2
    assert total == pytest.approx(sum(seen), rel=1e-9)
