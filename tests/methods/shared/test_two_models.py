"""What methods of two models share: which second model they take, and which methods steer both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_toy
from saved_models import saved, worse
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.gate import Gate
from thrifty.errors import MissingAccess, ThriftyError
from thrifty.methods import get_method
from thrifty.methods.base import Composition, Method
from thrifty.methods.collaborate.r2r import R2R
from thrifty.models.attention import AttentionPolicy
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace

PROBLEMS = list(load_task("mix").problems(limit=3, seed=5))


def solve(model: TorchModel, spec: str, count: int = 2, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 80, **values})
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs_for(PROBLEMS[:count], 1), settings)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(make_toy(seed=1), tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def blurred(pebble: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(worse(pebble, 0.5), tmp_path_factory.mktemp("blurred"))


def test_the_large_model_s_prompt_and_ends_hold_for_the_small_one(small: str, pebble64: TorchModel) -> None:
    standing_in = R2R(small=small).small_model(pebble64)
    assert standing_in.context_length == 512
    assert standing_in.eos_ids >= pebble64.eos_ids
    assert (standing_in.name, standing_in.think) == (small, pebble64.think)


def test_models_with_other_tokens_are_refused(toy: TorchModel, tmp_path: Path) -> None:
    other = make_toy(seed=4)
    other.tokenizer.add_tokens(["forsooth"])
    path = saved(other, tmp_path / "other")
    with pytest.raises(ThriftyError, match="same tokenizer") as refusal:
        get_method(f"r2r(small='{path}',threshold=0)").check(toy)
    assert "\n" not in str(refusal.value)
    recordings = tmp_path / "r.jsonl"
    recordings.write_text('{"question": "1+1?", "response": "2"}\n')
    with pytest.raises(MissingAccess, match="hidden"):
        get_method(f"r2r(small='replay:{recordings}',threshold=0)").check(toy)
    with pytest.raises(ThriftyError, match="no model 'nowhere'"):
        get_method("r2r(small=nowhere,threshold=0)").check(toy)


def test_steering_methods_steer_whoever_writes(pebble: TorchModel, blurred: str) -> None:
    for steering in ("cap(budget=12)", "cgrs"):
        traces = solve(pebble, f"r2r(small='{blurred}',strategy=random,rate=0.5)+{steering}", 2, max_tokens=80)
        assert all(t.answer_text.strip() for t in traces.values())
        if steering.startswith("cap"):
            assert {t.closed_by for t in traces.values()} <= {"cap", "model"}
            assert all(t.usage.thinking <= 13 for t in traces.values())


def test_a_gate_of_the_large_model_does_not_steer_the_small_one(
    pebble: TorchModel, blurred: str, tmp_path: Path
) -> None:
    size = pebble.hidden_size
    gate = Gate(("a", "b"), 1, torch.zeros(size), torch.ones(size), torch.zeros(2, size), torch.zeros(2))
    path = Artefact("first-try", identity(pebble), gates={"candidate": gate}).save(tmp_path / "g.json")
    spec = f"first-try(gates='{path[0]}')"
    get_method(spec).check(pebble)
    with pytest.raises(ThriftyError, match="whose weights are not"):
        solve(pebble, f"r2r(small='{blurred}',strategy=entropy)+{spec}", 1)


class Thinning(Method):
    slug = "thinning"

    def attention(self, model: TorchModel) -> AttentionPolicy | None:
        return None  # that it may decide is enough


def test_nothing_thins_the_cache_of_two_models(small: str, toy: TorchModel) -> None:
    both = Composition([R2R(small=small, strategy="entropy"), Thinning()])
    with pytest.raises(ThriftyError, match="one at a time"):
        next(both.solve(toy, jobs_for(PROBLEMS[:1], 1), Settings(max_tokens=8)))
