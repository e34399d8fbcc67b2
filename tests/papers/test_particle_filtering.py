"""Particle filtering: weights and draws, and runs on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests_helpers import random_verifier
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.collaborate.particle_filtering import resample, weights
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace


def test_weights_are_the_softmax_of_the_logits() -> None:
    assert weights([0.5, 0.75]) == pytest.approx([0.25, 0.75])
    assert weights([0.2, 0.2, 0.2]) == pytest.approx([1 / 3] * 3)
    assert weights([1.0, 0.5]) == pytest.approx([1 - 1e-7, 1e-7], rel=1e-3), "certainty is clipped"
    assert weights([0.0, 0.0]) == pytest.approx([0.5, 0.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 1, exclude_max=True))
def test_a_draw_picks_a_particle_that_has_weight(scores: list[float], draw: float) -> None:
    shares = weights(scores)
    assert sum(shares) == pytest.approx(1)
    (picked,) = resample(shares, [draw])
    assert shares[picked] > 0
    assert sum(shares[:picked]) <= draw + 1e-9
    assert draw <= sum(shares[: picked + 1]) + 1e-9


def test_particles_are_drawn_with_replacement() -> None:
    assert resample([0.25, 0.5, 0.25], [0.0, 0.24, 0.25, 0.74, 0.75, 0.99]) == [0, 0, 1, 1, 2, 2]


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


@pytest.mark.parametrize("step", ["line", "response"])
def test_one_particle_is_vanilla(pebble64: TorchModel, judge: Path, step: str) -> None:
    plain = solve(pebble64, "vanilla", temperature=0.8)
    spec = f"particle-filtering(particles=1,temperature=-1,step={step},verifier='{judge}')"
    filtered = solve(pebble64, spec, temperature=0.8)
    assert {k: response(t) for k, t in filtered.items()} == {k: response(t) for k, t in plain.items()}
    assert [t.usage.total for _, t in sorted(filtered.items())] == [t.usage.total for _, t in sorted(plain.items())]


def test_neither_batch_nor_order_changes_the_particles(pebble64: TorchModel, judge: Path) -> None:
    spec = f"particle-filtering(particles=3,step=line,verifier='{judge}')"
    alone, together = (solve(pebble64, spec, 3, batch_size=size) for size in (1, 7))
    assert {k: (response(t), t.events) for k, t in alone.items()} == {
        k: (response(t), t.events) for k, t in together.items()
    }


def test_the_response_is_the_particle_of_the_largest_weight_and_all_is_counted(pebble: TorchModel, judge: Path) -> None:
    for trace in solve(pebble, f"particle-filtering(particles=3,step=line,verifier='{judge}')").values():
        noted, usage = trace.events["particle-filtering"], trace.usage
        assert round(noted["v"], 4) == max(noted["scores"])
        assert not noted["incomplete"]
        assert noted["steps"] > 1
        assert noted["steps"] < noted["prm_calls"] <= 3 * noted["steps"]
        assert usage.total == usage.prompt + noted["tokens"]
        assert usage.generated == len(response(trace))
        assert trace.answer_text.strip()


def test_at_the_limit_on_steps_the_best_particle_is_completed(pebble: TorchModel, judge: Path) -> None:
    spec = f"particle-filtering(particles=2,step=line,depth=1,verifier='{judge}')"
    for trace in solve(pebble, spec, max_tokens=300).values():
        noted = trace.events["particle-filtering"]
        assert (noted["steps"], noted["prm_calls"], noted["incomplete"]) == (1, 2, True)
        assert trace.answer_text.strip()


@pytest.mark.parametrize(("options", "message"), [("particles=0", "particles must be"), ("temperature=0", "alike")])
def test_options_out_of_range_are_refused(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(f"particle-filtering({options})")
