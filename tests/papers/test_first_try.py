"""First Try Matters: the card's worked numbers, its no-op setting, and one run on the embedded model."""

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
from thrifty.methods.control.first_try import FirstTry, stop_line
from thrifty.methods.tuning import Tuning
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.answers import extract_candidates
from thrifty.traces.segments import analyse_transitions
from thrifty.traces.trace import Trace

SCORES = [0.1, 0.6, 0.2, 0.7, 0.9]


def test_stop_lines_of_the_card() -> None:
    assert stop_line(SCORES, 0.5, tries=1) == 2
    assert stop_line(SCORES, 0.5, tries=3) == 5
    assert stop_line(SCORES, 0.95, tries=1) is None


def test_transitions_of_the_card() -> None:
    found = analyse_transitions(["3", "3", "7", "7", "4"], [False, False, True, True, False])
    assert (found.confirmatory, found.corrective) == (2 / 4, 1 / 4)
    assert found.p_correct == pytest.approx(1 / 2)


def solve(model: TorchModel, spec: str, count: int = 16) -> dict[str, Trace]:
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, Settings(max_tokens=500))}


def ids(trace: Trace) -> tuple[int, ...]:
    return tuple(i for s in trace.segments for i in s.ids)


def test_no_op_setting_equals_vanilla_token_for_token(pebble: TorchModel) -> None:
    plain, none = solve(pebble, "vanilla"), solve(pebble, "first-try(tries=0)")
    assert {k: ids(t) for k, t in plain.items()} == {k: ids(t) for k, t in none.items()}


@pytest.mark.parametrize("tries", [1, 2])
def test_end_to_end_it_stops_behind_the_nth_candidate_line(pebble: TorchModel, tries: int) -> None:
    stopped = solve(pebble, f"first-try(tries={tries})")
    plain = solve(pebble, "vanilla")
    assert sum(t.closed_by == "first-try" for t in stopped.values()) >= 8
    for key, trace in stopped.items():
        if trace.closed_by != "first-try":
            assert ids(trace) == ids(plain[key])
            continue
        thought = "".join(s.text for s in trace.segments if s.kind == "thinking")
        candidates = [extract_candidates(line) for line in thought.rstrip().splitlines()]
        assert sum(c is not None for c in candidates) == tries
        assert candidates[-1] is not None
        assert thought == plain[key].thinking_text[: len(thought)]
        assert trace.answer_text.strip()


def test_it_composes_with_cgrs(pebble: TorchModel) -> None:
    both = solve(pebble, "cgrs+first-try(tries=2)")
    assert any(t.closed_by == "first-try" for t in both.values())
    assert any(t.usage.probe for t in both.values())
    assert all(t.method == "cgrs+first-try(tries=2)" for t in both.values())


def test_options_out_of_range_are_refused() -> None:
    for options in ("tries=-1", "reflective_tries=-1", "theta_c=1.5", "theta_q=-0.5"):
        with pytest.raises(ThriftyError, match="first-try"):
            get_method(f"first-try({options})")


# -- With trained gates ----------------------------------------------------------------------------------------


def tuning(model: TorchModel, limit: int, **options: Any) -> Tuning:
    return Tuning("first-try", model, load_task("mix"), Settings(max_tokens=300), limit, options)


@pytest.fixture(scope="module")
def tuned(pebble: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("first-try") / "gates.json"
    FirstTry.tune(tuning(pebble, 20, qrc=False)).save(path)
    return path


@pytest.fixture(scope="module")
def with_questions(pebble: TorchModel, tuned: Path) -> Path:
    """The tuned detector, and a controller that expects products to profit from reflection."""
    known = list(load_task("mix").problems(60, 1, "train"))
    states = prompt_states(pebble, known, pebble.layers, Settings())
    labels = torch.tensor([int(p.metadata["family"] == "products") for p in known])
    training = Training(width=16, balanced=True)
    gate = fit_gate(states[:40], labels[:40], states[40:], labels[40:], ("no", "yes"), pebble.layers, training)
    detector = Artefact.load(tuned, "first-try").gates["candidate"]
    path = tuned.with_name("both.json")
    values = {"theta_c": 0.5, "theta_q": 0.5}
    Artefact("first-try", identity(pebble), values=values, gates={"candidate": detector, "reflection": gate}).save(path)
    return path


def test_tuning_reports_what_it_learned(tuned: Path) -> None:
    artefact = Artefact.load(tuned, "first-try")
    report = artefact.report
    assert set(artefact.gates) == {"candidate"}
    assert report["lines"]["labels"]["candidate"] >= 20
    assert report["lines"]["on_held_out"]["auroc"] > 0.9
    assert report["lines"]["on_held_out"]["accuracy"] > report["lines"]["on_held_out"]["majority"]
    assert 0 < artefact.values["theta_c"] < 1
    assert 0 < report["reflections"]["thinking_behind_first_candidate"] < 1
    stops = report["held_out"]
    assert stops["cad only"]["thinking_tokens"] < stops["without stopping"]["thinking_tokens"]


def test_end_to_end_the_trained_detector_stops_where_the_expressions_do(pebble: TorchModel, tuned: Path) -> None:
    gated, plain = solve(pebble, f"first-try(gates='{tuned}')"), solve(pebble, "first-try")
    same = [k for k, t in gated.items() if t.closed_by == "first-try" and ids(t) == ids(plain[k])]
    assert len(same) >= 10, "of 16"
    assert all(t.usage.probe == 0 and t.usage.helper == 0 for t in gated.values())
    for key in same:
        (stop,) = gated[key].events["first-try"]
        assert stop[0] == plain[key].events["first-try"][0][0]
        assert stop[1] > 0.5


def thought_lines(traces: dict[str, Trace]) -> set[int]:
    """Count the lines that are not blank in the thinking of traces that were stopped."""
    thoughts = [
        "".join(s.text for s in trace.segments if s.kind == "thinking")
        for trace in traces.values()
        if trace.closed_by == "first-try"
    ]
    return {len([line for line in thought.splitlines() if line.strip()]) for thought in thoughts}


def test_higher_thresholds_stop_later(pebble: TorchModel, tuned: Path) -> None:
    vanilla = solve(pebble, "vanilla", 6)
    never = solve(pebble, f"first-try(gates='{tuned}',theta_c=1)", 6)
    assert {k: ids(t) for k, t in never.items()} == {k: ids(t) for k, t in vanilla.items()}
    always = solve(pebble, f"first-try(gates='{tuned}',theta_c=0)", 6)
    assert thought_lines(always) == {1}


def test_questions_that_need_reflection_get_more_tries(pebble: TorchModel, with_questions: Path) -> None:
    problems = {p.id: p for p in load_task("mix").problems(limit=16, seed=5)}
    traces = solve(pebble, f"first-try(gates='{with_questions}',theta_q=-1)")
    for key, trace in traces.items():
        wanted = 3 if problems[key].metadata["family"] == "products" else 1
        assert trace.events["first-try-question"]["tries"] == wanted
        if trace.closed_by == "first-try":
            assert len(trace.events["first-try"]) == wanted
    cad_only = solve(pebble, f"first-try(gates='{with_questions}',theta_q=1)", 4)
    assert all(t.events["first-try-question"]["tries"] == 1 for t in cad_only.values())
    three = solve(pebble, f"first-try(gates='{with_questions}',theta_q=0)", 4)
    assert all(t.events["first-try-question"]["tries"] == 3 for t in three.values())


def test_with_gates_the_batch_does_not_matter(pebble64: TorchModel, with_questions: Path) -> None:
    def sampled(size: int) -> dict[str, tuple[int, ...]]:
        jobs = jobs_for(load_task("mix").problems(limit=6, seed=5), 1)
        settings = Settings(max_tokens=120, temperature=0.8, batch_size=size)
        method = get_method(f"first-try(gates='{with_questions}')")
        return {t.problem_id: ids(t) for t in method.solve(pebble64, jobs, settings)}

    assert sampled(1) == sampled(7)


def test_gates_of_another_model_and_missing_ones_are_refused(
    pebble: TorchModel, toy: TorchModel, tuned: Path, tmp_path: Path
) -> None:
    with pytest.raises(ThriftyError, match="weights"):
        get_method(f"first-try(gates='{tuned}')").check(toy)
    with pytest.raises(ThriftyError, match="there is no"):
        get_method(f"first-try(gates='{tmp_path / 'absent'}')").check(pebble)


def test_tuning_says_which_examples_are_missing(toy: TorchModel) -> None:
    # the toy never states an answer
    with pytest.raises(ThriftyError, match="labelled 'candidate'") as refusal:
        FirstTry.tune(
            Tuning("first-try", toy, load_task("mix"), Settings(max_tokens=40, temperature=1.0, loop_stop=False), 10)
        )
    assert "\n" not in str(refusal.value)


def test_a_detector_by_hand_counts_lines_not_blank_ones(pebble: TorchModel, tmp_path: Path) -> None:
    """A gate that calls every line a candidate stops behind the n-th line that is not blank."""
    size = pebble.hidden_size
    gate = Gate(("no", "yes"), 0, torch.zeros(size), torch.ones(size), torch.zeros(2, size), torch.tensor([0.0, 9.0]))
    path = Artefact("first-try", identity(pebble), gates={"candidate": gate}).save(tmp_path / "all.json")[0]
    for tries in (1, 4):
        assert thought_lines(solve(pebble, f"first-try(gates='{path}',tries={tries})", 6)) == {tries}
