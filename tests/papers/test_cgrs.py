"""CGRS: the card's worked numbers, its no-op setting, and one run on the embedded model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.controller import Controller
from thrifty.decoding.probe import entropy
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.control.cgrs import CGRS, MASKED, TRIGGERS, certainty, suppression_probability
from thrifty.methods.tuning import Tuning
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.segments import marker_ids
from thrifty.traces.trace import Trace


def test_worked_numbers_of_the_card() -> None:
    second = torch.tensor([0.97, 0.01, 0.01, 0.01]).log()
    entropies = [0.0, float(entropy(second))]
    assert entropies[1] == pytest.approx(0.16770, abs=1e-5)
    assert sum(entropies) / 2 == pytest.approx(0.08385, abs=1e-5)
    assert sum(entropies) / 2 / math.log(4) == pytest.approx(0.06049, abs=1e-5)
    c = certainty(entropies, 4)
    assert c == pytest.approx(0.93951, abs=1e-5)
    assert suppression_probability(c, 0.9) == pytest.approx(0.39515, abs=1e-4)
    assert suppression_probability(0.9, 0.9) == 0.0
    assert suppression_probability(1.0, 0.9) == pytest.approx(1.0)
    assert suppression_probability(0.5, 0.9) == 0.0


def test_masking_renormalises_as_on_the_card() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    logits[0] = MASKED
    assert [round(p, 4) for p in torch.softmax(logits, -1).tolist()] == [0.0, 0.7311, 0.2689]


def test_a_delta_of_one_never_divides_by_zero() -> None:
    assert suppression_probability(1.0, 1.0) == 0.0


@given(st.lists(st.floats(0, 50), min_size=1, max_size=9), st.floats(0, 1))
def test_certainty_and_probability_stay_between_zero_and_one(entropies: list[float], delta: float) -> None:
    c = certainty(entropies, 640)
    assert 0 <= c <= 1
    assert 0 <= suppression_probability(c, delta) <= 1


def solve(
    model: TorchModel, spec: str, count: int = 12, watch: Sequence[Controller] = (), **values: float
) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 400, **values})  # type: ignore[arg-type]
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings, watch)}


def ids(traces: dict[str, Trace]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(i for s in t.segments if s.kind != "probe" for i in s.ids) for k, t in traces.items()}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_no_op_setting_equals_vanilla_token_for_token(pebble: TorchModel, temperature: float) -> None:
    plain = solve(pebble, "vanilla", temperature=temperature)
    none = solve(pebble, "cgrs(delta=1)", temperature=temperature)
    assert ids(plain) == ids(none)
    assert all(t.usage.probe == 0 for t in none.values())


def test_suppression_draws_do_not_shift_sampling(pebble64: TorchModel) -> None:
    """Probing and drawing alone, with nothing to mask, must leave sampled tokens as they are."""

    spec = "cgrs(delta=0.999999999)"
    plain = solve(pebble64, "vanilla", temperature=0.8)
    probed = solve(pebble64, spec, temperature=0.8)
    untouched = [k for k, t in probed.items() if all(p == 0 for _, _, p, _ in t.events["cgrs"])]
    assert untouched, "some traces must stay below this bar for the test to mean something"
    for key in untouched:
        assert ids(plain)[key] == ids(probed)[key]


def test_end_to_end_it_probes_at_blank_lines_and_writes_fewer_reflection_words(pebble: TorchModel) -> None:
    plain, steered = solve(pebble, "vanilla", 24), solve(pebble, "cgrs(delta=0.0)", 24)
    triggers = marker_ids(pebble.texts.all(), TRIGGERS)

    def reflections(traces: dict[str, Trace]) -> int:
        return sum(i in triggers for row in ids(traces).values() for i in row)

    assert reflections(steered) < 0.5 * reflections(plain)
    for trace in steered.values():
        probes = [s for s in trace.segments if s.kind == "probe"]
        assert len(probes) == len(trace.events["cgrs"])
        assert trace.usage.probe >= sum(len(s.ids) for s in probes)
        for position, c, p, text in trace.events["cgrs"]:
            assert 0 <= c <= 1
            assert p == pytest.approx(c, abs=1e-4)  # delta = 0
            assert "}" not in text
            assert position < trace.usage.generated


def test_after_the_thinking_nothing_is_suppressed(pebble: TorchModel) -> None:
    seen: list[bool] = []

    class Look(Controller):
        def adjust_logits(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
            seen.extend(bool((logits[i] <= MASKED).any()) for i, row in enumerate(rows) if row.phase == "answer")
            return logits

    solve(pebble, "cgrs(delta=0.0)", watch=[Look()])
    assert seen
    assert not any(seen)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ThriftyError, match="delta"):
        get_method("cgrs(delta=1.5)")
    with pytest.raises(ThriftyError, match="triggers"):
        get_method("cgrs(triggers=())")
    with pytest.raises(ThriftyError, match="probe_tokens"):
        get_method("cgrs(probe_tokens=0)")


# -- Calibration -----------------------------------------------------------------------------------------------


def tuning(model: TorchModel, task: str, limit: int = 12, **options: object) -> Tuning:
    return Tuning("cgrs", model, load_task(task), Settings(max_tokens=200), limit, options)


def test_calibration_parts_right_from_wrong_probes(pebble: TorchModel, tmp_path: Path) -> None:
    # sums of more and larger numbers than the embedded model was ever trained on
    task = "rg:chain_sum(min_terms=2,max_terms=8,min_digits=1,max_digits=4)"
    artefact = CGRS.tune(tuning(pebble, task))
    report, delta = artefact.report, artefact.values["delta"]
    assert report["probes"]["right"] > 0
    assert report["probes"]["wrong"] > 0
    assert 0 <= delta < 1
    total = sum(report["probes"].values())
    above = report["calibrated"]["probes_above"] * total
    right_above = report["calibrated"]["right_above"] * above / report["probes"]["right"]
    wrong_above = (1 - report["calibrated"]["right_above"]) * above / report["probes"]["wrong"]
    assert right_above > wrong_above, "above the bar stand more of the right probes than of the wrong ones"
    path = artefact.save(tmp_path / "delta.json")[0]
    by_file = solve(pebble, f"cgrs(calibration='{path}')", 4)
    assert ids(by_file) == ids(solve(pebble, f"cgrs(delta={delta})", 4))
    # an entropy bar is the same whatever vocabulary it is divided by
    reference = report["equivalent_reference_vocabulary"]
    assert reference == round(pebble.vocabulary_size ** ((1 - delta) / 0.1))


def test_a_calibration_is_used_only_with_what_it_was_made_with(
    pebble: TorchModel, toy: TorchModel, tmp_path: Path
) -> None:
    method = CGRS(close_thinking=True)
    made_with = {
        name: getattr(method, name) for name in ("cue", "probe_tokens", "close_thinking", "reference_vocabulary")
    }
    path = Artefact("cgrs", identity(pebble), made_with, {"delta": 0.25}).save(tmp_path / "c.json")[0]
    assert CGRS(calibration=str(path), close_thinking=True).bar == 0.25
    get_method(f"cgrs(calibration='{path}',close_thinking=true)").check(pebble)
    with pytest.raises(ThriftyError, match=r"close_thinking=True.*give the same") as refusal:
        get_method(f"cgrs(calibration='{path}')").check(pebble)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ThriftyError, match="weights"):
        get_method(f"cgrs(calibration='{path}',close_thinking=true)").check(toy)
    with pytest.raises(ThriftyError, match="there is no"):
        get_method(f"cgrs(calibration='{tmp_path / 'absent'}')").check(pebble)


def test_probes_that_are_all_alike_calibrate_nothing(toy: TorchModel) -> None:
    with pytest.raises(ThriftyError, match=r"0 of \d+ probed answers are right"):
        CGRS.tune(tuning(toy, "mix", 10))
