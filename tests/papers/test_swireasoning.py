"""SwiReasoning: the card's worked numbers, the algorithm written out, the cap on switches, and company."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from endless import make_endless
from thrifty.decoding.controller import Controller
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import Sampler, row_key
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods import get_method
from thrifty.methods.latent.swireasoning import LEAD_IN, MODES, SwiController, SwiReasoning, Switching, share
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.think import THINK_FORMATS
from thrifty.traces.trace import Problem, Trace

LIVELY = "window=2,math_tokens=false"
"""Switches often, and mixes in every latent block."""


@pytest.fixture(scope="module")
def endless() -> TorchModel:
    return make_endless()


def solve(model: TorchModel, spec: str, count: int = 3, watch: Sequence[Controller] = (), **values: Any) -> list[Trace]:
    settings = Settings(**{"max_tokens": 60, "loop_stop": False, **values})
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return sorted(get_method(spec).solve(model, jobs, settings, watch), key=lambda trace: trace.problem_id)


def response(trace: Trace) -> list[tuple[str, int]]:
    """Return the kind and id of every token of a response."""
    return [(s.kind, i) for s in trace.segments if s.kind != "probe" for i in s.ids]


def switches(trace: Trace, mode: str) -> list[int]:
    """Return after how many tokens a response switched to a mode."""
    return [position for position, to, _ in trace.events["swireasoning"] if to == mode]


# -- The controller --------------------------------------------------------------------------------------------


def start(rows: int = 1, mode: str = "switch") -> Switching:
    """Return where rows stand before their first step."""
    none = np.zeros(rows, dtype=np.int64)
    return Switching(none == (mode != "explicit"), np.full(rows, MODES[mode]), none, none > 0, none, none - 1)


def feed(controller: SwiController, entropies: Sequence[float], locked_at: int = -1) -> list[tuple[Any, ...]]:
    """Return mode, reference, switches and what is injected after each step of one row."""
    state, seen = start(), []
    for step, nats in enumerate(entropies):
        state, decision = controller.step(state, np.array([nats]), np.array([step == locked_at]))
        injected = "converge" if decision.converge[0] else "terminate" if decision.terminate[0] else ""
        mode = "E" if state.explicit[0] else "L"
        seen.append((mode, float(state.reference[0]), int(state.switches[0]), injected))
        if decision.end[0]:
            break
    return seen


def test_worked_numbers_of_the_controller() -> None:
    entropies = [2.0, 1.5, 2.5, 2.6, 2.0]
    seen = feed(SwiController(window=2), entropies)
    assert [mode for mode, *_ in seen] == ["L", "E", "E", "L", "E"]
    assert [reference for _, reference, *_ in seen] == [2.0, 1.5, 1.5, 2.6, 2.0]
    assert [count for *_, count, _ in seen] == [0, 1, 1, 1, 2]
    assert {injected for *_, injected in seen} == {""}
    capped = feed(SwiController(window=2, max_switches=1), [*entropies, 2.1, 2.2, 1.0])
    assert [injected for *_, injected in capped] == ["", "converge", "", "", "converge", "", "", "terminate"]


def test_a_termination_leaves_its_tokens_and_happens_once() -> None:
    falling_and_rising = [2.0 if step % 2 else 3.0 for step in range(60)]
    seen = feed(SwiController(window=1, max_switches=1, answer_tokens=8), falling_and_rising)
    injected = [what for *_, what in seen]
    assert [step for step, what in enumerate(injected) if what] == [1, 3, 5]
    assert len(seen) == 5 + 8


def test_a_locked_row_never_turns_latent_and_is_left_alone() -> None:
    seen = feed(SwiController(window=1, max_switches=1), [2.0, 1.5, 2.5, 1.0, 3.0, 4.0], locked_at=3)
    assert [mode for mode, *_ in seen] == ["L", "E", "L", "E", "E", "E"]
    assert [injected for *_, injected in seen] == ["", "converge", "", "", "", ""]


@given(st.lists(st.floats(0, 6), min_size=2, max_size=40), st.integers(1, 6), st.integers(1, 4))
def test_rows_decide_as_if_alone_and_no_later_than_the_cap_allows(
    entropies: list[float], window: int, max_switches: int
) -> None:
    controller = SwiController(window, max_switches, answer_tokens=3)
    both, one = start(2), start()
    closed = np.array([False, False])
    for nats in entropies:
        both, decisions = controller.step(both, np.array([6 - nats, nats]), closed)
        one, decision = controller.step(one, np.array([nats]), closed[:1])
        assert [field[1] for field in (*both, *decisions)] == [field[0] for field in (*one, *decision)]
        # by construction, an explicit block begins with less entropy than the latent one before it
        assert not decision.to_explicit[0] or one.reference[0] == nats
        assert one.budget[0] == -1 or one.switches[0] > 2 * max_switches
        if decision.end[0]:
            break
    assert one.budget[0] >= 0 or one.switches[0] <= 2 * max_switches


def test_worked_numbers_of_the_shares() -> None:
    assert share(0.6, 50, 100) == pytest.approx(0.80)
    assert share(0.7, 50, 100) == pytest.approx(0.85)
    assert [share(0.7, 0, 100), share(0.7, 100, 100), share(1.0, 50, 100)] == [0.7, 1.0, 1.0]


# -- The algorithm ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def written_out(
    model: TorchModel, problem: Problem, method: SwiReasoning, settings: Settings
) -> tuple[list[int], list[list[Any]]]:
    """Return the tokens of a thought and its switches: one row, no cache, step by step as on the card."""
    inputs = model.embed(torch.tensor(model.encode_prompt(model.render(problem.messages))))
    table = model.embed(torch.arange(model.vocabulary_size))
    opener, closer, newline = (table[model.encode(text)[0]] for text in ("<think>", "</think>", "\n"))
    sampler = Sampler.of([settings], model.device)
    keys = np.array([row_key(settings.seed, problem.id, 0)], dtype=np.uint64)
    written, switched = list[int](), list[list[Any]]()
    explicit, reference, stay = False, 0.0, 0
    for t in range(settings.max_tokens):
        logits = model.network(inputs_embeds=inputs[None]).logits[0, -1:, : model.vocabulary_size]
        token = int(sampler.choose(logits, keys, np.array([t], dtype=np.uint64))[0])
        p = torch.softmax(logits[0], -1)
        nats = -float((p * p.clamp(min=1e-12).log()).sum())
        to_explicit = to_latent = False
        if t == 0:
            reference = nats
        else:
            stay += 1
            to_explicit = not explicit and nats < reference
            to_latent = explicit and nats > reference and stay >= method.window
        if to_explicit or to_latent:
            explicit, stay, reference = not explicit, 0, nats
            switched.append([t + 1, "explicit" if explicit else "latent", pytest.approx(nats, abs=1e-5)])
        soft, a, b = p @ table, *(x + (1 - x) * t / settings.max_tokens for x in (method.alpha, method.beta))
        if t == 0:
            soft = 0.9 * soft + 0.1 * newline
        elif to_latent:
            soft = a * soft + (1 - a) * opener
        hard = b * soft + (1 - b) * closer if to_explicit else table[token]
        written.append(token)
        inputs = torch.cat([inputs, (hard if explicit else soft)[None]])
    return written, switched


@pytest.mark.parametrize("options", ["window=2,alpha=0.6", "window=4,alpha=0.3,beta=0.2"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_it_does_what_the_card_says(endless: TorchModel, options: str, temperature: float) -> None:
    spec = f"swireasoning(math_tokens=false,{options})"
    (method,) = get_method(spec).parts
    assert isinstance(method, SwiReasoning)
    settings = Settings(max_tokens=26, answer_reserve=0, temperature=temperature, top_k=40, loop_stop=False)
    problems = list(load_task("mix").problems(limit=2, seed=5))
    traces = {t.problem_id: t for t in get_method(spec).solve(endless, jobs_for(problems, 1), settings)}
    assert sum(len(trace.events["swireasoning"]) for trace in traces.values()) > 4
    for problem in problems:
        trace = traces[problem.id]
        tokens, switched = written_out(endless, problem, method, settings)
        assert [token for _, token in response(trace)] == tokens
        assert trace.events["swireasoning"] == switched
        assert 0 < trace.usage.latent_steps < 26


def test_math_tokens_are_read_as_they_are(endless: TorchModel) -> None:
    class Alternate(Controller):
        """Writes a digit and a word by turns."""

        def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
            wanted = [endless.encode("7" if len(row.ids) % 2 else " is")[0] for row in rows]
            return logits.scatter(-1, torch.tensor(wanted)[:, None], 1e6)

    for math_tokens, expected in ((True, ["latent", "thinking"] * 6), (False, ["latent"] * 12)):
        spec = f"swireasoning(mode=latent,math_tokens={math_tokens})"
        (trace,) = solve(endless, spec, 1, watch=[Alternate()], max_tokens=12, answer_reserve=0)
        assert [kind for kind, _ in response(trace)] == expected


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_explicit_thinking_equals_vanilla_token_for_token(pebble64: TorchModel, temperature: float) -> None:
    plain, explicit = (
        solve(pebble64, spec, temperature=temperature) for spec in ("vanilla", "swireasoning(mode=explicit)")
    )
    assert [response(t) for t in explicit] == [response(t) for t in plain]


def test_latent_thinking_reads_mixtures_until_it_is_closed(endless: TorchModel) -> None:
    for trace in solve(endless, "swireasoning(mode=latent,math_tokens=false)", thinking_budget=10):
        assert [kind for kind, _ in response(trace)][:10] == ["latent"] * 10
        assert (trace.usage.latent_steps, trace.usage.thinking, trace.closed_by) == (10, 0, "budget")
        assert trace.events["swireasoning"] == []


@pytest.mark.parametrize("options", [LIVELY, f"{LIVELY},max_switches=1", "window=3,alpha=0.5"])
def test_neither_batch_nor_neighbours_matter(pebble64: TorchModel, options: str) -> None:
    spec = f"swireasoning({options})"
    one, many = (solve(pebble64, spec, max_tokens=50, temperature=0.7, batch_size=size) for size in (1, 2))
    assert [response(t) for t in one] == [response(t) for t in many]
    assert any(t.usage.latent_steps for t in one)


# -- The cap ---------------------------------------------------------------------------------------------------


def test_the_cap_closes_the_thinking_and_then_asks_for_the_answer(endless: TorchModel) -> None:
    # a random model goes on switching in the answer, so that all three stages are seen
    for trace in solve(endless, f"swireasoning({LIVELY},max_switches=1)", max_tokens=200):
        first, _, third = switches(trace, "explicit")[:3]
        free = solve(endless, f"swireasoning({LIVELY})", max_tokens=200)
        unlimited = next(t for t in free if t.problem_id == trace.problem_id)
        assert response(trace)[:first] == response(unlimited)[:first]
        assert trace.closed_by == "swireasoning"
        closer = [token for _, token in takewhile(lambda written: written[0] == "injected", response(trace)[first:])]
        assert endless.texts.text(closer).strip("\n") == endless.think.close
        behind = endless.texts.text([token for kind, token in response(trace)[third:] if kind == "injected"])
        assert behind.strip("\n") == LEAD_IN
        assert (len(response(trace)), trace.stop_reason) == (third + 31, "max_tokens")
        assert trace.text.count(endless.think.close) == 1


def test_a_hard_close_stays_explicit(endless: TorchModel) -> None:
    for trace in solve(endless, f"swireasoning({LIVELY},max_switches=2,hard_close=true)", max_tokens=120):
        closing = switches(trace, "explicit")[1]
        assert trace.closed_by == "swireasoning"
        assert all(position <= closing for position in switches(trace, "latent"))
        assert LEAD_IN not in trace.text


class CloseAt(Controller):
    """Makes a row write the closing marker of its own accord."""

    def __init__(self, length: int) -> None:
        self.length = length

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        due = torch.tensor([len(row.ids) == self.length for row in rows])
        closer = torch.tensor([row.model.encode(row.model.think.close) for row in rows])
        return torch.where(due[:, None], logits.scatter(-1, closer, 1e6), logits)


@pytest.mark.parametrize(
    "spec", ["swireasoning({})", "cap(budget=12)+swireasoning({})", "swireasoning({})+cap(budget=12)"]
)
def test_once_the_thinking_is_ended_the_answer_is_explicit(endless: TorchModel, spec: str) -> None:
    watch = [] if "cap" in spec else [CloseAt(12)]
    for trace in solve(endless, spec.format(f"{LIVELY},max_switches=9"), watch=watch):
        assert trace.closed_by == ("cap" if "cap" in spec else "model")
        latent = [i for i, (kind, _) in enumerate(response(trace)) if kind == "latent"]
        assert latent[0] == 0
        assert not [i for i in switches(trace, "latent") if i > 13]
        # where the last block was latent, one more step makes it explicit
        assert len([i for i in latent if i > 13]) <= 1
        assert LEAD_IN not in trace.text


# -- In company ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["cap(budget=13)", "first-try", "cgrs(delta=0.0)", "soft-thinking", "s1(minimum=20)"])
def test_it_composes(pebble64: TorchModel, other: str) -> None:
    for spec in (f"{other}+swireasoning({LIVELY})", f"swireasoning({LIVELY})+{other}"):
        for trace in solve(pebble64, spec, 2, max_tokens=90):
            kinds, usage = Counter(kind for kind, _ in response(trace)), trace.usage
            assert usage.latent_steps == kinds["latent"] > 0
            spent = (usage.thinking, usage.answer, usage.injected)
            assert spent == (kinds["thinking"], kinds["answer"], kinds["injected"])
            if trace.closed_by == "cap":
                assert sum(len(s.ids) for s in trace.segments if s.phase == "thinking" and s.kind != "injected") == 13


def test_end_to_end_on_the_embedded_model(pebble: TorchModel) -> None:
    for trace in solve(pebble, f"swireasoning({LIVELY},max_switches=3)", max_tokens=120):
        usage, written = trace.usage, response(trace)
        assert usage.latent_steps > 0
        assert usage.generated + usage.latent_steps == len(written) <= 120
        assert usage.forward_passes >= usage.thinking + usage.answer + usage.latent_steps
        assert Trace.from_json(trace.to_json()) == trace
        entropies = [nats for *_, nats in trace.events["swireasoning"]]
        directions = [mode for _, mode, _ in trace.events["swireasoning"]]
        assert directions == ["explicit", "latent"] * (len(directions) // 2) + ["explicit"] * (len(directions) % 2)
        for (before, after), mode in zip(pairwise(entropies), directions[1:], strict=True):
            assert after < before if mode == "explicit" else after > before


def test_mixing_is_in_the_account_of_operations(endless: TorchModel) -> None:
    mixed, plain = (
        solve(endless, f"swireasoning(mode={mode},math_tokens=false)", 1, max_tokens=10, answer_reserve=0)[0].usage
        for mode in ("latent", "explicit")
    )
    assert mixed.latent_steps == 10
    assert mixed.flops == plain.flops + 10 * 2 * endless.vocabulary_size * endless.hidden_size


def test_a_model_that_spells_its_markers_is_refused(endless: TorchModel) -> None:
    spelling = TorchModel(endless.network, endless.tokenizer, "speller", THINK_FORMATS["harmony"])
    with pytest.raises(ThriftyError, match=r"'speller' spells '<.*analysis.*>' in \d+ tokens.*--think"):
        get_method("swireasoning").check(spelling)
    get_method("swireasoning").check(endless)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("alpha=1.5", "alpha"),
        ("beta=-0.1", "beta"),
        ("newline=2.0", "newline"),
        ("max_switches=0", "max_switches"),
        ("window=0", "window"),
        ("answer_tokens=0", "answer_tokens"),
    ],
)
def test_options_out_of_range_are_refused(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(f"swireasoning({options})")
    with pytest.raises(UnknownName, match="explicit"):
        get_method("swireasoning(mode=soft)")
