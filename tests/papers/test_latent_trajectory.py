"""Latent-Trajectory signals: both policies, what they cost, the calibration, and runs on the embedded model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.gate import Gate
from thrifty.decoding.trajectory import segment_means, signals
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.control.latent_trajectory import BASELINES, ORIENTATION, LatentTrajectory
from thrifty.methods.tuning import Tuning
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.selection import argbest, vote
from thrifty.traces.trace import Trace

NEVER = "latent-trajectory(window=8,threshold=1e9)"
EARLY = "latent-trajectory(window=8,policy=early,checkpoint=24"


def solve(model: TorchModel, spec: str, count: int = 2, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 60, "temperature": 0.9, "loop_stop": False, **values})
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def response(trace: Trace) -> tuple[int, ...]:
    return tuple(i for s in trace.segments if s.kind != "probe" for i in s.ids)


def noted(trace: Trace) -> dict[str, Any]:
    events: dict[str, Any] = trace.events["latent-trajectory"]
    return events


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(
    "options", ["samples=1", "samples=1,baselines=true", "samples=1,window=8,policy=early,checkpoint=24"]
)
def test_one_sample_is_vanilla_at_vanillas_account(toy: TorchModel, options: str, temperature: float) -> None:
    plain, watched = (
        solve(toy, spec, temperature=temperature) for spec in ("vanilla", f"latent-trajectory({options})")
    )
    assert {k: response(t) for k, t in plain.items()} == {k: response(t) for k, t in watched.items()}
    for key, trace in watched.items():
        for count in ("prompt", "thinking", "answer", "injected", "total"):
            assert getattr(trace.usage, count) == getattr(plain[key].usage, count)


def test_the_first_sample_above_the_threshold_ends_the_sampling(toy: TorchModel) -> None:
    """A threshold among the scores of all samples must take the first of them above it, as drawn."""
    full = solve(toy, NEVER)
    scores = {key: [note["net"] for note in noted(trace)["signals"]] for key, trace in full.items()}
    tau = min(row[0] for row in scores.values())  # the others are accepted at once
    drawn = []
    for key, trace in solve(toy, f"latent-trajectory(window=8,threshold={tau!r})").items():
        events = noted(trace)
        passing = [i for i, score in enumerate(scores[key]) if score is not None and score > tau]
        assert events["samples"] == (passing[0] + 1 if passing else 5)
        assert events["accepted"] == bool(passing)
        seen = [note["net"] or 0.0 for note in events["signals"]]
        assert seen == pytest.approx([score or 0.0 for score in scores[key][: len(seen)]], rel=1e-4)
        assert trace.usage.prompt * 5 == full[key].usage.prompt * events["samples"]
        if passing:
            assert events["chosen"] == passing[0]
        drawn.append(events["samples"])
    assert len(set(drawn)) > 1


def test_the_signals_are_those_of_the_hidden_states(toy: TorchModel) -> None:
    problems = {p.id: p for p in load_task("mix").problems(limit=3, seed=5)}
    lengths = []
    for key, trace in solve(toy, "latent-trajectory(samples=1,window=8,divisor=release)").items():
        ids = [*toy.encode_prompt(toy.render(problems[key].messages)), *response(trace)]
        layers = range(1, toy.layers + 1)
        with torch.inference_mode(), toy.tap(layers) as seen:
            toy.network(torch.tensor([ids]))
        thinking = sum(len(s.ids) for s in trace.segments if s.phase == "thinking")
        begin = len(ids) - len(response(trace))
        states = torch.stack([seen[layer][0] for layer in layers], dim=1)[begin : begin + thinking]
        expected = signals(segment_means(states, 8), "release")
        (note,) = noted(trace)["signals"]
        assert note["length"] == thinking
        if thinking > 8:
            assert {name: note[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        lengths.append(thinking)
    assert max(lengths) > 16


def test_without_a_threshold_and_without_a_pass_the_majority_answers(pebble: TorchModel) -> None:
    never, voted, plain = (
        solve(pebble, spec, max_tokens=120)
        for spec in (f"{NEVER[:-1]},samples=3)", "majority(samples=3)", "latent-trajectory(window=8,samples=3)")
    )
    for key, trace in plain.items():
        answers = noted(trace)["answers"]
        assert answers == noted(never[key])["answers"] == voted[key].events["majority"]["answers"]
        assert noted(trace)["chosen"] == (vote(answers) or 0)
        assert response(trace) == response(never[key]) == response(voted[key])
        assert trace.usage.total == never[key].usage.total == voted[key].usage.total


def test_a_trace_of_one_window_is_not_accepted(toy: TorchModel) -> None:
    for trace in solve(toy, "latent-trajectory(window=500,samples=2,threshold=-1e9)").values():
        assert [note["net"] for note in noted(trace)["signals"]] == [None, None]
        assert noted(trace)["accepted"] is False


@pytest.mark.parametrize(("signal", "sign"), list(ORIENTATION.items()))
def test_signals_have_the_sign_that_makes_higher_better(toy: TorchModel, signal: str, sign: int) -> None:
    """A threshold just below or above the only sample's oriented signal accepts or refuses it."""
    once = solve(toy, "latent-trajectory(window=8,samples=1)", 1)
    ((note,),) = (noted(t)["signals"] for t in once.values())
    for shift, accepted in ((-1e-3, True), (1e-3, False)):
        tau = sign * note[signal] + shift
        again = solve(toy, f"latent-trajectory(window=8,samples=1,signal={signal},threshold={tau!r})", 1)
        assert [noted(t)["accepted"] for t in again.values()] == [accepted]


def test_early_choice_goes_on_with_the_most_promising_path_only(toy: TorchModel) -> None:
    """What it returns is what that sample would have been, for the checkpoint's price of the others."""
    whole = solve(toy, "latent-trajectory(window=8,threshold=1e9,checkpoint=24)")
    chosen = set()
    for key, trace in solve(toy, f"{EARLY})").items():
        events = noted(trace)
        lengths = [note["length"] for note in noted(whole[key])["signals"]]
        assert events["stopped"] == [length > 24 for length in lengths]
        assert [note["length"] for note in events["signals"]] == [min(24, length) for length in lengths]
        best = argbest([note["net"] for note in events["signals"]])
        assert events["chosen"] == best
        samples = [s.text for s in whole[key].segments if s.kind == "probe"]
        place = noted(whole[key])["chosen"]
        samples.insert(place, "".join(s.text for s in whole[key].segments if s.kind != "probe"))
        assert best is not None
        assert trace.text == samples[best]
        early = [note.get("early_net", note["net"]) or 0.0 for note in noted(whole[key])["signals"]]
        assert [note["net"] or 0.0 for note in events["signals"]] == pytest.approx(early, rel=1e-4)
        if all(events["stopped"]):
            assert trace.usage.generated == 4 * 24 + len(response(trace))
        chosen.add(best)
    assert chosen != {0}


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("spec", [f"{EARLY},samples=3)", "latent-trajectory(window=8,samples=3,threshold=6.0)"])
def test_the_batch_changes_nothing(pebble64: TorchModel, spec: str, size: int) -> None:
    def seen(traces: dict[str, Trace]) -> dict[str, Any]:
        return {k: (response(t), t.usage.total, noted(t)["samples"], noted(t)["chosen"]) for k, t in traces.items()}

    assert seen(solve(pebble64, spec, 2, batch_size=size)) == seen(solve(pebble64, spec, 2, batch_size=3))


def test_baselines_are_noted_beside_the_signals(toy: TorchModel) -> None:
    for trace in solve(toy, "latent-trajectory(samples=1,window=8,baselines=true)").values():
        (note,) = noted(trace)["signals"]
        assert {*ORIENTATION, *BASELINES} - set(note) == set()
        assert all(note[name] is not None for name in BASELINES if name != "layer_angle")
        assert note["layer_angle"] is None  # two layers make one step, which turns nowhere
        assert note["perplexity"] >= 1
        assert note["entropy"] > 0 < note["margin"]


@pytest.fixture(scope="module")
def tuned(pebble: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artefact, Path]:
    options = {"window": 16, "samples": 3, "checkpoint": 48, "temperature": 0.9}
    settings = Settings(max_tokens=200, batch_size=36)
    artefact = LatentTrajectory.tune(Tuning("latent-trajectory", pebble, load_task("mix"), settings, 12, options))
    path = tmp_path_factory.mktemp("tuned") / "paths.json"
    artefact.save(path)
    return artefact, path


def test_tuning_calibrates_every_signal(tuned: tuple[Artefact, Path]) -> None:
    artefact, _ = tuned
    assert set(artefact.values["thresholds"]) == set(ORIENTATION)
    assert artefact.settings["temperature"] == 0.9, "a greedy run would draw the same sample three times"
    assert artefact.report["majority"]["samples"] == 3
    for name in ORIENTATION:
        assert 1 <= artefact.report[name]["cross_validated"]["samples"] <= 3
        assert 0 <= artefact.report[name]["auroc"] <= 1
    assert ("chooser" in artefact.gates) != ("warning" in artefact.report)


def test_the_calibrated_threshold_is_used(pebble: TorchModel, tuned: tuple[Artefact, Path]) -> None:
    artefact, path = tuned
    options = f"window=16,samples=3,checkpoint=48,calibration={str(path)!r}"
    tau = artefact.values["thresholds"]["net"]
    method = get_method(f"latent-trajectory({options})").parts[0]
    assert isinstance(method, LatentTrajectory)
    method.check(pebble)
    assert method.tau == tau
    assert replace(method, signal="aligned").tau == artefact.values["thresholds"]["aligned"]
    assert replace(method, threshold=0.25).tau == 0.25


def test_an_artefact_of_other_options_or_of_another_model_is_refused(
    pebble: TorchModel, toy: TorchModel, tuned: tuple[Artefact, Path]
) -> None:
    _, path = tuned
    with pytest.raises(ThriftyError, match=r"latent-trajectory\(window=16,"):
        get_method(f"latent-trajectory(calibration={str(path)!r})").check(pebble)
    with pytest.raises(ThriftyError, match="was made for 'pebble'"):
        get_method(f"latent-trajectory(window=16,checkpoint=48,calibration={str(path)!r})").check(toy)
    with pytest.raises(ThriftyError, match="thrifty tune latent-trajectory"):
        get_method("latent-trajectory(calibration=nowhere.json)").check(toy)


def test_a_trained_chooser_chooses(toy: TorchModel, tmp_path: Path) -> None:
    """A gate that likes what the signal does not must turn the choice round."""
    weights = torch.tensor([[0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    against = Gate(("wrong", "right"), toy.layers, torch.zeros(3), torch.ones(3), weights, torch.zeros(2))
    values: dict[str, Any] = {"thresholds": dict.fromkeys(ORIENTATION, 0.0)}
    values |= {"window": 8, "divisor": "paper", "merge": False, "checkpoint": 24}
    Artefact("latent-trajectory", identity(toy), {}, values, {}, {"chooser": against}).save(tmp_path / "a.json")
    path = str(tmp_path / "a.json")
    for trace in solve(toy, f"{EARLY},calibration={path!r})").values():
        least = argbest([None if note["net"] is None else -note["net"] for note in noted(trace)["signals"]])
        assert noted(trace)["chosen"] == least


def test_methods_that_steer_one_stream_steer_every_part(pebble: TorchModel) -> None:
    spec = f"{EARLY},samples=2)+cap(budget=30)"
    for trace in solve(pebble, spec, 2, max_tokens=100).values():
        assert trace.closed_by in ("cap", "model")
        assert trace.usage.thinking <= 24 + 30
        assert trace.answer_text.strip()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("policy=late", "sequential"),
        ("signal=gross", "cumulative"),
        ("divisor=none", "release"),
        ("threshold=high", "number"),
        ("samples=0", "samples"),
        ("window=-1", "window"),
        ("checkpoint=0", "checkpoint"),
        ("temperature=0.0", "temperature"),
    ],
)
def test_mistakes_get_one_line(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(f"latent-trajectory({options})")
