"""DiffAdapt: the card's worked numbers, its no-op setting, runs with a real probe, and the tuning of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.features import prompt_states
from thrifty.decoding.gate import Gate, Training, fit_gate
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.control.diffadapt import CLASSES, DiffAdapt, label, strategy_report
from thrifty.methods.tuning import Tuning
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem, Trace, Usage

CLASS_OF = {"chain_sum": "easy", "products": "normal", "leg_counting": "hard"}


def test_labels_of_the_card() -> None:
    cases = [((0.9, 0.4), "normal"), ((0.9, 0.8), "easy"), ((0.2, 0.1), "hard"), ((0.5, 0.4), "easy")]
    for (accuracy, entropy), wanted in cases:
        assert label(accuracy, entropy, 0.7, 0.5, 0.3) == wanted


def test_budgets_and_temperatures_of_the_card() -> None:
    run = Settings(max_tokens=100, temperature=0.0, answer_reserve=90)
    method = DiffAdapt()
    found = {name: method.settings_of(name, run) for name in (*CLASSES, "plain")}
    assert [s.max_tokens for s in found.values()] == [40, 100, 50, 100]
    assert [s.temperature for s in found.values()] == [0.5, 0.8, 0.4, 0.0]
    assert [s.answer_reserve for s in found.values()] == [40, 90, 50, 90]
    assert method.settings_of("easy", Settings(max_tokens=1)).max_tokens == 1
    kept = DiffAdapt(temperatures=False)
    assert {kept.settings_of(name, run).temperature for name in CLASSES} == {0.0}


def test_the_strategy_stands_where_it_is_asked_for() -> None:
    asked = ({"role": "user", "content": "1 + 1?"},)
    text = DiffAdapt().easy_prompt
    assert DiffAdapt().messages(asked, "easy") == [{"role": "user", "content": f"1 + 1?\n\n{text}"}]
    assert DiffAdapt(prompts="system").messages(asked, "easy") == [{"role": "system", "content": text}, *asked]
    briefed = ({"role": "system", "content": "Be polite."}, *asked)
    assert DiffAdapt(prompts="system").messages(briefed, "easy") == [
        {"role": "system", "content": f"Be polite.\n\n{text}"},
        *asked,
    ]
    assert DiffAdapt(prompts="none").messages(asked, "easy") == list(asked)
    assert DiffAdapt().messages(asked, "plain") == list(asked)


def test_choices_are_summed_up_per_question() -> None:
    def trace(tokens: int, correct: bool) -> Trace:
        return Trace("p", "m", 0, 0, [], "eos", "model", correct=correct, usage=Usage(thinking=tokens, prompt=9))

    runs = {
        "easy": [trace(10, True), trace(10, False)],
        "normal": [trace(30, True), trace(40, True)],
        "hard": [trace(20, True), trace(20, False)],
    }
    found = strategy_report(runs, {"probe": [0, 1], "labels": [2, 2]})
    assert found["normal"] == {"tokens": 35.0, "accuracy": 1.0}
    assert found["probe"] == {"tokens": 25.0, "accuracy": 1.0}
    assert found["labels"] == {"tokens": 20.0, "accuracy": 0.5}
    assert found["oracle"] == {"tokens": 25.0, "accuracy": 1.0}


def problems(count: int, split: str = "test", seed: int = 5) -> list[Problem]:
    found = load_task("mix").problems(None, seed, split)  # type: ignore[arg-type]  # one of the two
    some = (problem for problem in found if problem.metadata["family"] in CLASS_OF)
    return [next(some) for _ in range(count)]


def solve(model: TorchModel, spec: str, count: int = 9, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 120, **values})
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs_for(problems(count), 1), settings)}


def ids(traces: dict[str, Trace]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(i for s in t.segments for i in s.ids) for k, t in traces.items()}


@pytest.fixture(scope="module")
def probe(pebble: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe that tells three families apart, as if one were easy and one hard: real states, made-up labels."""
    path = tmp_path_factory.mktemp("diffadapt") / "probe.json"
    known = problems(60, "train")
    states = prompt_states(pebble, known, pebble.layers, Settings())
    labels = torch.tensor([CLASSES.index(CLASS_OF[p.metadata["family"]]) for p in known])
    gate = fit_gate(states[:45], labels[:45], states[45:], labels[45:], CLASSES, pebble.layers, Training(width=16))
    Artefact("diffadapt", identity(pebble), gates={"difficulty": gate}).save(path)
    return path


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_no_op_settings_equal_vanilla_token_for_token(pebble: TorchModel, temperature: float) -> None:
    plain = ids(solve(pebble, "vanilla", temperature=temperature))
    assert ids(solve(pebble, "diffadapt(strategy=plain)", temperature=temperature)) == plain
    normal = solve(pebble, "diffadapt(strategy=normal,prompts=none,temperatures=false)", temperature=temperature)
    assert ids(normal) == plain
    assert all(t.usage.probe == 0 for t in normal.values())


def test_end_to_end_each_question_gets_the_strategy_of_its_class(pebble: TorchModel, probe: Path) -> None:
    traces = solve(pebble, f"diffadapt(probe='{probe}')")
    for problem in problems(9):
        trace = traces[problem.id]
        note = trace.events["diffadapt"]
        assert note["strategy"] == CLASS_OF[problem.metadata["family"]]
        assert not note["fallback"]
        prompt = pebble.encode_prompt(pebble.render(problem.messages))
        assert trace.usage.probe == len(prompt), "the plain prompt is read once"
        assert trace.usage.prompt > len(prompt), "and the strategy's prompt behind it"
        assert trace.usage.generated <= {"easy": 48, "normal": 120, "hard": 60}[note["strategy"]]
        assert trace.answer_text.strip()
    forced = solve(pebble, "diffadapt(strategy=hard)")
    hard = [k for k, t in traces.items() if t.events["diffadapt"]["strategy"] == "hard"]
    assert [ids(traces)[k] for k in hard] == [ids(forced)[k] for k in hard]


def test_without_a_prompt_the_response_goes_on_from_what_the_probe_read(pebble64: TorchModel, probe: Path) -> None:
    spec = f"diffadapt(probe='{probe}',prompts=none)"
    traces = solve(pebble64, spec, 6)
    forced = {name: solve(pebble64, f"diffadapt(strategy={name},prompts=none)", 6) for name in CLASSES}
    for key, trace in traces.items():
        same = forced[trace.events["diffadapt"]["strategy"]][key]
        assert ids(traces)[key] == ids({key: same})[key]
        assert trace.usage.probe == 0
        assert trace.usage.total == same.usage.total, "the prompt is read once"
        assert trace.usage.flops == pytest.approx(same.usage.flops)


def test_it_is_deterministic_at_any_batch_size(pebble64: TorchModel, probe: Path) -> None:
    spec = f"diffadapt(probe='{probe}')"
    assert ids(solve(pebble64, spec, 6, batch_size=1)) == ids(solve(pebble64, spec, 6, batch_size=7))


def test_an_unsure_probe_falls_back_to_the_normal_strategy(pebble: TorchModel, probe: Path) -> None:
    traces = solve(pebble, f"diffadapt(probe='{probe}',confidence=1.1)", 3)
    assert {t.events["diffadapt"]["strategy"] for t in traces.values()} == {"normal"}
    assert all(t.events["diffadapt"]["fallback"] for t in traces.values())


def test_other_methods_steer_the_response(pebble: TorchModel, probe: Path) -> None:
    for prompts in ("suffix", "none"):
        traces = solve(pebble, f"diffadapt(probe='{probe}',prompts={prompts})+cap(budget=10)")
        assert all(t.usage.thinking <= 11 for t in traces.values())
        assert any(t.closed_by == "cap" for t in traces.values())


def test_a_missing_probe_and_one_of_another_model_are_refused(
    pebble: TorchModel, toy: TorchModel, probe: Path, tmp_path: Path
) -> None:
    for spec, model, message in (
        ("diffadapt", toy, "thrifty tune diffadapt"),
        (f"diffadapt(probe='{tmp_path / 'absent.json'}')", pebble, "there is no"),
    ):
        with pytest.raises(ThriftyError, match=message) as refusal:
            get_method(spec).check(model)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ThriftyError, match="weights"):
        get_method(f"diffadapt(probe='{probe}')").check(toy)
    get_method("diffadapt(strategy=easy)").check(toy)


def test_options_out_of_range_are_refused() -> None:
    for options in ("strategy=fast", "prompts=prefix", "easy_budget=0", "hard_temperature=-1"):
        with pytest.raises(ThriftyError, match="diffadapt"):
            get_method(f"diffadapt({options})")


def tuning(model: TorchModel, limit: int = 10, **options: Any) -> Tuning:
    options = {"prompts": "none", "samples": 1, **options}
    return Tuning("diffadapt", model, load_task("mix"), Settings(max_tokens=120), limit, options)


def test_tuning_trains_a_probe_that_the_method_takes(pebble: TorchModel, tmp_path: Path) -> None:
    # questions that are not always answered right are hard, the others part at their median entropy
    artefact = DiffAdapt.tune(tuning(pebble, 27, samples=2, alpha=0.75, gamma=0.75, shuffled=True))
    labels = artefact.report["labels"]
    assert sum(labels.values()) == 27
    assert abs(labels["easy"] - labels["normal"]) <= 1
    assert artefact.settings["samples"] == 2
    assert artefact.settings["task"] == "mix"
    held_out = artefact.report["probe_on_held_out"]
    assert held_out["n"] == artefact.report["shuffled_labels_on_held_out"]["n"] > 0
    found = artefact.report["strategies_on_held_out"]
    assert set(found) == {*CLASSES, "probe", "labels", "shuffled_labels", "oracle"}
    best = max(found[name]["accuracy"] for name in CLASSES)
    assert found["oracle"]["accuracy"] >= best
    assert found["easy"]["tokens"] <= 48
    path = artefact.save(tmp_path / "probe.json")[0]
    chosen = {t.events["diffadapt"]["strategy"] for t in solve(pebble, f"diffadapt(probe='{path}')", 6).values()}
    assert chosen <= set(CLASSES)


def test_tuning_refuses_labels_that_are_all_alike(pebble: TorchModel) -> None:
    # accuracy is never above 1: no question is normal
    with pytest.raises(ThriftyError, match="beta"):
        DiffAdapt.tune(tuning(pebble, alpha=1.5))
    with pytest.raises(ThriftyError, match="none of 10 problems is labelled 'hard'") as refusal:
        DiffAdapt.tune(tuning(pebble, alpha=0.5, gamma=-1.0, beta=0.1))
    assert "\n" not in str(refusal.value)
    with pytest.raises(ThriftyError, match="no option 'sample'"):
        DiffAdapt.tune(tuning(pebble, sample=1))


def test_a_constant_probe_of_the_cards_numbers_chooses_easy(toy: TorchModel, tmp_path: Path) -> None:
    """The probe's arithmetic on the card's numbers, through the file and the flow."""
    size = toy.hidden_size
    gate = Gate(CLASSES, 0, torch.zeros(size), torch.ones(size), torch.zeros(3, size), torch.tensor([1.0, 0.0, 0.0]))
    path = Artefact("diffadapt", identity(toy), gates={"difficulty": gate}).save(tmp_path / "constant.json")[0]
    (trace,) = solve(toy, f"diffadapt(probe='{path}')", 1, max_tokens=20).values()
    assert trace.events["diffadapt"]["probabilities"] == pytest.approx([0.5761, 0.2119, 0.2119], abs=1e-4)
    assert trace.events["diffadapt"]["strategy"] == "easy"
    assert trace.usage.generated <= 8
