"""TS (tldr): the card's worked numbers, where it acts and where not, and runs on the embedded model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from conftest import make_toy
from thrifty.cli import app
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.control.tldr import scale_stop
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.think import think_format
from thrifty.traces.trace import Problem, Trace

STOP = torch.tensor([0])


def stop_probability(logits: Sequence[float], mode: str, temperature: float = 1.0, bias: float = 0.0) -> float:
    scaled = scale_stop(torch.tensor([logits], dtype=torch.float64), STOP, mode, temperature, bias)
    assert scaled[0, 1:].tolist() == list(logits[1:])
    return float(torch.softmax(scaled, -1)[0, 0])


def test_worked_numbers_of_the_card() -> None:
    logits = [2.0, 3.0, 1.0]
    assert stop_probability(logits, "shifted", 1.0) == pytest.approx(0.24473, abs=1e-5)
    assert stop_probability(logits, "ratio", 0.5) == pytest.approx(0.70538, abs=1e-5)
    assert stop_probability(logits, "bias", bias=math.log(4)) == pytest.approx(0.56448, abs=1e-5)
    assert stop_probability(logits, "shifted", 0.5) == pytest.approx(0.34821, abs=1e-5)
    # the literal form goes the wrong way where the logit is negative; the shifted one does not
    assert stop_probability([-2.0, 3.0, 1.0], "ratio", 1.0) == pytest.approx(0.0059, abs=1e-4)
    assert stop_probability([-2.0, 3.0, 1.0], "ratio", 0.5) == pytest.approx(0.0008, abs=1e-4)
    assert stop_probability([-2.0, 3.0, 1.0], "shifted", 0.5) > 0.0059


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.floats(0, 1), st.floats(0, 5))
def test_the_shifted_form_is_safe_whatever_the_sign(logits: list[float], temperature: float, bias: float) -> None:
    before = stop_probability(logits, "bias")
    after = stop_probability(logits, "shifted", temperature)
    assert after >= before * (1 - 1e-9)
    assert stop_probability(logits, "bias", bias=bias) >= before * (1 - 1e-9)
    # order is kept, so that greedy decoding keeps its choice: at most a tie with the likeliest
    assert scale_stop(torch.tensor([logits]), STOP, "shifted", temperature)[0, 0] <= max(logits) + 1e-4


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.floats(0.1, 10))
def test_a_bias_multiplies_the_odds(logits: list[float], k: float) -> None:
    before, after = stop_probability(logits, "bias"), stop_probability(logits, "bias", bias=math.log(k))
    if 1e-12 < before < 1 - 1e-9 and 1e-12 < after < 1 - 1e-9:
        assert after / (1 - after) == pytest.approx(k * before / (1 - before), rel=1e-4)


def row_of(model: TorchModel, text: str, temperature: float = 0.6) -> Row:
    job = Job(Problem.ask("2 + 5?"))
    prompt = f"2 + 5?\n{model.think.force_open}"
    row = Row(job, Settings(temperature=temperature), model, 1, model.encode(prompt), model.tracker.start(prompt))
    for token in model.encode(text):
        row.record(token, forced=False)
    return row


def scaled(model: TorchModel, rows: Sequence[Row], spec: str) -> list[list[int]]:
    """Return for each row the tokens whose logits the method changes."""
    (controller,) = get_method(spec).parts[0].controllers(model)
    controller.begin(rows, None)  # type: ignore[arg-type]  # it needs no batch
    logits = torch.linspace(-3, 5, model.vocabulary_size, dtype=torch.float64).repeat(len(rows), 1)
    changed = controller.adjust_logits(rows, logits) != logits
    return [line.nonzero()[:, 0].tolist() for line in changed]


def test_only_the_closer_is_scaled_and_only_while_thinking(toy: TorchModel) -> None:
    (closer,) = toy.encode("</think>")
    texts = ["", "So it", "So it is 7.\n</think>\n\nIt is", "Seven</", "1 2 3 4 5 6 7 8"]
    rows = [row_of(toy, text) for text in texts]
    closing = row_of(toy, "So it is")
    closing.close_thinking("cap")
    assert scaled(toy, [*rows, closing], "tldr-ts(temperature=0.7)") == [[closer], [closer], [], [closer], [closer], []]
    guarded = scaled(toy, rows, "tldr-ts(temperature=0.7,min_think_tokens=6)")
    assert guarded == [[closer] if row.thinking and len(row.ids) >= 6 else [] for row in rows]
    assert [] in guarded
    assert [closer] in guarded


def test_a_closer_of_several_tokens_is_scaled_by_its_first_where_no_other_tag_can_be_meant() -> None:
    toy = make_toy()
    model = TorchModel(toy.network, toy.tokenizer, "toy", think_format("<reason>,</reason>"))
    first, *more = model.encode("</reason>\n\n")
    assert more, "the closer must be several tokens for the test to mean something"
    texts = ["", "<b>So", "<b>So it is.\n", "So.\n<", "So.\n</reason>\n"]
    assert scaled(model, [row_of(model, text) for text in texts], "tldr-ts") == [[first], [], [first], [], []]


def test_the_place_says_where_it_is_scaled(toy: TorchModel) -> None:
    (closer,) = toy.encode("</think>")
    rows = [row_of(toy, text) for text in ("", "So it", "So it is 7.\n", "So it is 7.\n\n", "So.\n\nSo.\n")]
    for place, due in (
        ("auto", [1, 1, 1, 1, 1]),
        ("anywhere", [1, 1, 1, 1, 1]),
        ("lines", [1, 0, 1, 1, 1]),
        ("paragraphs", [0, 0, 0, 1, 0]),
    ):
        assert scaled(toy, rows, f"tldr(place={place})") == [[closer] * here for here in due]


def solve(model: TorchModel, spec: str, count: int = 8, **values: float) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 160, "temperature": 0.6, **values})  # type: ignore[arg-type]
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[tuple[int, ...]]]:
    return {k: [s.ids for s in t.segments] for k, t in traces.items()}


def test_lower_temperatures_think_less(pebble: TorchModel) -> None:
    means = []
    for temperature in (1.0, 0.15, 0.05, 0.0):
        traces = solve(pebble, f"tldr-ts(temperature={temperature})", 12, temperature=1.0, max_tokens=100).values()
        means.append(sum(trace.usage.thinking for trace in traces) / 12)
    assert means == sorted(means, reverse=True)
    assert means[1] < 0.7 * means[0]
    assert means[3] < 0.2 * means[0]


def test_empty_thoughts_are_told_and_guarded_against(pebble: TorchModel) -> None:
    for trace in solve(pebble, "tldr(temperature=0.0)", temperature=0.0).values():
        assert trace.events["tldr"] == {"empty_thought": True}
        assert (trace.closed_by, trace.usage.thinking) == ("model", 1)
    for trace in solve(pebble, "tldr(temperature=0.0,min_think_tokens=12)", temperature=0.0).values():
        assert trace.events["tldr"] == {"empty_thought": False}
        assert (trace.closed_by, trace.usage.thinking) == ("model", 13)


def test_it_comes_before_top_p(pebble: TorchModel) -> None:
    """A closer that top-p would drop is scaled first."""
    for trace in solve(pebble, "tldr(mode=bias,bias=100.0)", temperature=1.0, top_p=0.1).values():
        assert trace.usage.thinking == 1


def test_in_greedy_decoding_the_stop_alone_is_drawn(pebble: TorchModel) -> None:
    """Up to where it stops, a thought is the greedy one; how often it stops is the scaled probability."""
    plain, steered = (
        solve(pebble, m, 12, temperature=0.0, max_tokens=100) for m in ("vanilla", "tldr(temperature=0.15)")
    )
    stopped = 0
    for key, trace in steered.items():
        thought, greedy = trace.segments[0], plain[key].segments[0]
        if trace.closed_by == "model" and thought.ids != greedy.ids:
            stopped += 1
            assert thought.ids[:-1] == greedy.ids[: len(thought.ids) - 1]
            assert thought.text.endswith("</think>")
    assert stopped >= 3


def test_stops_are_drawn_with_the_scaled_probability(toy: TorchModel) -> None:
    (controller,) = get_method("tldr(temperature=0.5)").parts[0].controllers(toy)
    rows = [row_of(toy, "So", temperature=0.0) for _ in range(4000)]
    for key, row in enumerate(rows):
        row.key = key
    logits = torch.full((len(rows), toy.vocabulary_size), -100.0)
    (closer,) = toy.encode("</think>")
    logits[:, [closer, 9, 10]] = torch.tensor([2.0, 3.0, 1.0])
    stops = controller.adjust_logits(rows, logits).argmax(-1) == closer
    assert float(stops.double().mean()) == pytest.approx(0.34821, abs=0.03)


def test_neutral_settings_leave_the_model_alone(pebble: TorchModel) -> None:
    for spec in ("tldr(temperature=1.0)", "tldr(mode=ratio,temperature=1)", "tldr(mode=bias)"):
        assert get_method(spec).parts[0].controllers(pebble) == []
    plain, guarded = (
        solve(pebble, m, 4, max_tokens=80) for m in ("vanilla", "tldr(min_think_tokens=1000,temperature=0.1)")
    )
    assert ids(guarded) == ids(plain)


def test_neither_batch_size_nor_neighbours_change_a_token(pebble64: TorchModel) -> None:
    spec = "tldr(temperature=0.2)"
    alone, together = (solve(pebble64, spec, 7, batch_size=size, max_tokens=90) for size in (1, 7))
    assert ids(alone) == ids(together)


def test_both_names_are_one_method() -> None:
    assert get_method("tldr-ts(temperature=0.7)").spec == get_method("tldr(temperature=0.7)").spec
    shown = [CliRunner().invoke(app, ["methods", "show", name]) for name in ("tldr-ts", "tldr")]
    assert shown[0].output == shown[1].output
    assert "2505.07961" in shown[0].output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("mode=odd", "shifted, ratio, bias"),
        ("place=odd", "lines, paragraphs"),
        ("temperature=-0.1", "temperature"),
        ("mode=ratio,temperature=0", "temperature"),
        ("bias=1.0", "mode=bias"),
        ("min_think_tokens=-1", "min_think_tokens"),
    ],
)
def test_options_out_of_range_are_refused(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(f"tldr({options})")
