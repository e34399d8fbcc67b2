"""FoReaL-Decoding: the card's worked numbers, who writes which token of a sentence, and both curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import make_toy
from saved_models import Tampered, saved, worse
from thrifty.decoding.controller import Controller
from thrifty.decoding.follower import Share
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import row_key, uniforms
from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.collaborate.foreal import (
    STREAM,
    FoReaL,
    SentenceGate,
    ends_sentence,
    misalignment,
    sentence_indices,
    theoretical_flops,
)
from thrifty.models import load_model
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace

PROBLEMS = list(load_task("mix").problems(limit=3, seed=5))


def solve(model: TorchModel, spec: str, count: int = 3, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 40, **values})
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs_for(PROBLEMS[:count], 1), settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[int]]:
    return {key: [token for s in trace.segments for token in s.ids] for key, trace in traces.items()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A toy with the tokens of the other one."""
    return saved(make_toy(seed=1, sharpness=30.0), tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def small_toy(small: str) -> TorchModel:
    model = load_model(small, dtype="float64")
    assert isinstance(model, TorchModel)
    return model


@pytest.mark.parametrize(
    ("text", "following", "ended"),
    [
        ("It is 5.", " So", True),
        ("It is 3.", "14", False),
        ("It is 5.", "\n\n", False),  # the newline is what ends it
        ("It is 5.\n", "So", True),
        ("Is it?", " No", True),
        ("Go!", " No", True),
        ("Let me think. ", "So", True),
        ("Let me think. ", " ", False),
        ("1.", " Add", False),
        ("\n\n1.", " Add", False),
        ("Take 2, e.g.", " this", False),
        ("It goes on", " and on", False),
        ("a\n", "", True),
        ("\n\n", "So", False),
        ("", "So", False),
        ("\n\nSo", " what", False),
        ("It is 5.", "", False),
    ],
)
def test_where_sentences_end(text: str, following: str, ended: bool) -> None:
    assert ends_sentence(text, following) is ended


def test_operations_of_the_card() -> None:
    found = theoretical_flops(Share(8, 5), Share(5, 8), 32, 1.5)
    assert found == {"decode_only": 527, "full": 871, "leader_only": 832}
    assert found["decode_only"] / found["leader_only"] - 1 == pytest.approx(-0.367, abs=1e-3)
    assert found["full"] / found["leader_only"] - 1 == pytest.approx(0.047, abs=1e-3)


class Scripted(Controller):
    """Write what stands in a script, whoever's turn it is."""

    def __init__(self, script: Sequence[int]) -> None:
        self.script = script

    def next_input(self, rows: Sequence[Row], tokens: list[int]) -> None:
        for i, row in enumerate(rows):
            tokens[i] = self.script[len(row.ids)]


class Noting(SentenceGate):
    """Notes whose turn each token is."""

    def __init__(self, model: TorchModel, leader: TorchModel, options: FoReaL) -> None:
        super().__init__(model, leader, options)
        self.led: list[bool] = []

    def leads(self, rows: Sequence[Row], logits: Tensor) -> list[bool]:
        found = super().leads(rows, logits)
        self.led += found
        return found


def turns(
    small: TorchModel, large: TorchModel, options: FoReaL, script: Sequence[int], seed: int = 0
) -> tuple[list[bool], dict[str, Any]]:
    gate = Noting(small, large, options)
    plans = [(Job(PROBLEMS[0]), Plan(large.render(PROBLEMS[0].messages), [gate, Scripted(script)]))]
    settings = Settings(max_tokens=len(script), answer_reserve=0, loop_stop=False, seed=seed)
    (row,) = decode_rows(small, plans, settings)
    assert row.ids == list(script)
    return gate.led, options.events(row, gate)


def sentences(model: TorchModel, lengths: Sequence[int]) -> list[int]:
    """Return sentences of so many tokens each; the last one of a sentence is a newline."""
    (word,), (newline,) = model.encode("a"), model.encode("\n")
    return [token for length in lengths for token in [*[word] * (length - 1), newline]]


def seed_with_gates(gates: Sequence[bool], p: float) -> int:
    """Return a seed of the run at which the coins of the first problem fall so."""
    for seed in range(1000):
        keys = np.full(len(gates), row_key(seed, PROBLEMS[0].id, 0), dtype=np.uint64)
        draws = uniforms(keys, np.arange(len(gates), dtype=np.uint64), STREAM)
        if [draw < p for draw in draws] == list(gates):
            return seed
    raise AssertionError


def test_lead_tokens_of_the_card(small_toy: TorchModel, toy: TorchModel) -> None:
    script = sentences(toy, [7, 4, 2])
    led, told = turns(small_toy, toy, FoReaL(n=3), script)
    assert led == [True] * 3 + [False] * 4 + [True] * 3 + [False] + [True] * 2
    assert (told["sentences"], told["led_sentences"]) == (3, 3)
    assert told["lead_share"] == pytest.approx(8 / 13, abs=1e-4)
    seed = seed_with_gates([True, False, True], 0.6)
    led, told = turns(small_toy, toy, FoReaL(n=3, p=0.6), script, seed)
    assert led == [True] * 3 + [False] * 8 + [True] * 2
    assert (told["sentences"], told["led_sentences"]) == (3, 2)


def test_operations_count_what_was_read(small_toy: TorchModel, toy: TorchModel) -> None:
    draft = TorchModel(small_toy.network, small_toy.tokenizer, "draft")
    draft.parameters = 1000  # it matters whose are counted
    _, told = turns(draft, toy, FoReaL(n=3), sentences(toy, [7, 4, 2]))
    # before its last token the leader has read all that the draft wrote, and the draft reads whatever the leader wrote
    assert told["theoretical_flops"] == theoretical_flops(Share(8, 5), Share(5, 8), toy.parameters, 1000)
    _, told = turns(draft, toy, FoReaL(p=0.0), sentences(toy, [7, 4, 2]))
    assert told["theoretical_flops"]["full"] == told["theoretical_flops"]["decode_only"] == 2 * 13 * 1000


def test_a_sentence_without_an_end_is_cut(small_toy: TorchModel, toy: TorchModel) -> None:
    led, told = turns(small_toy, toy, FoReaL(n=2, cap=5), sentences(toy, [12]))
    assert led == [True, True, False, False, False] * 2 + [True, True]
    assert told["sentences"] == 3


def test_the_answer_may_be_the_draft_s_alone(small_toy: TorchModel, toy: TorchModel) -> None:
    script = [*toy.encode("So\n</think>\n\n"), *sentences(toy, [3, 3])]
    thinking = len(toy.encode("So\n</think>"))
    both, _ = turns(small_toy, toy, FoReaL(), script)
    assert all(both)
    led, told = turns(small_toy, toy, FoReaL(lead_answer=False), script)
    assert led == [True] * thinking + [False] * (len(script) - thinking)
    assert told["led_sentences"] < told["sentences"]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_each_end_is_one_of_the_models(temperature: float, small: str, small_toy: TorchModel, toy: TorchModel) -> None:
    leader, draft = solve(toy, "vanilla", temperature=temperature), solve(small_toy, "vanilla", temperature=temperature)
    assert ids(leader) != ids(draft)
    by_leader = solve(toy, f"foreal(small='{small}',p=1.0,n=1000)", temperature=temperature)
    by_draft = solve(toy, f"foreal(small='{small}',p=0)", temperature=temperature)
    assert ids(by_leader) == ids(leader)
    assert ids(by_draft) == ids(draft)
    assert ids(solve(toy, f"foreal(small='{small}',n=0)", temperature=temperature)) == ids(draft)
    for key, trace in by_draft.items():
        assert trace.usage.total == draft[key].usage.total
        assert (trace.usage.helper, trace.usage.forward_passes, trace.events["foreal"]["led_sentences"]) == (0, 0, 0)
    for trace in by_leader.values():
        told = trace.events["foreal"]
        assert told["lead_share"] == 1.0
        assert told["theoretical_flops"]["decode_only"] == told["theoretical_flops"]["leader_only"]


def test_the_account_holds_what_both_models_read_and_write(small: str, toy: TorchModel) -> None:
    led = []
    for trace in solve(toy, f"foreal(small='{small}',n=2,p=0.7,cap=6)").values():
        told, usage = trace.events["foreal"], trace.usage
        draft, leader = told["small"], told["large"]
        assert draft["written"] + leader["written"] == usage.thinking + usage.answer
        assert usage.total == sum(share["read"] + share["written"] for share in (draft, leader))
        assert usage.helper == leader["read"] + leader["written"]
        assert usage.flops == pytest.approx(draft["flops"] + leader["flops"])
        assert 0 < usage.forward_passes == leader["passes"] == leader["written"]
        assert told["led_sentences"] <= told["sentences"]
        assert Trace.from_json(trace.to_json()) == trace
        led.append(told["lead_share"])
    assert 0 < sum(led) < 1


def test_the_share_of_led_tokens_follows_n_and_p(small: str, toy: TorchModel) -> None:
    def share(**options: Any) -> float:
        listed = ",".join(f"{k}={v}" for k, v in options.items())
        traces = solve(toy, f"foreal(small='{small}',cap=6,{listed})", max_tokens=72).values()
        led, written = (
            sum(t.events["foreal"]["large"]["written"] for t in traces),
            sum(t.usage.generated for t in traces),
        )
        return led / written

    shares = [share(n=1), share(n=3), share(n=6)]
    assert shares == sorted(shares)
    assert shares[0] < shares[1] < shares[2]
    assert share(n=3, p=0.5) < shares[1]


@pytest.mark.parametrize("size", [1, 3])
def test_the_batch_changes_nothing(size: int, small: str, toy: TorchModel) -> None:
    spec = f"foreal(small='{small}',n=3,p=0.6,cap=8)"

    def found(batch_size: int) -> dict[str, Any]:
        traces = solve(toy, spec, batch_size=batch_size, temperature=0.7)
        return {key: (ids(traces)[key], trace.events["foreal"], trace.usage.total) for key, trace in traces.items()}

    assert found(size) == found(2)


def test_end_to_end_on_the_embedded_model(pebble: TorchModel, tmp_path: Path) -> None:
    blurred = saved(worse(pebble, 0.5), tmp_path / "blurred")
    for trace in solve(pebble, f"foreal(small='{blurred}',n=4)+cap(budget=60)", 2, max_tokens=120).values():
        told = trace.events["foreal"]
        assert trace.answer_text.strip()
        assert told["sentences"] > 1
        assert told["led_sentences"] == told["sentences"]
        assert 0 < told["lead_share"] < 1
        assert trace.usage.thinking <= 61


def test_beside_itself_the_model_is_itself(pebble64: TorchModel) -> None:
    plain, led = (solve(pebble64, spec, 2, max_tokens=60) for spec in ("vanilla", "foreal(small=pebble,n=3,p=0.5)"))
    assert ids(plain) == ids(led)


def astray(model: TorchModel, positions: set[int]) -> TorchModel:
    """Return a model that finds another token likeliest where some positions are predicted."""
    return Tampered(model, lambda position, best: best ^ 1 if position in positions else None)


@torch.inference_mode()
def greedy(model: TorchModel, prompt: list[int], count: int) -> list[int]:
    session, written = Session(model), list[int]()
    session.add([prompt])
    for _ in range(count):
        written.append(int(session.logits.argmax()))
        session.append([written[-1:]])
    return written


def test_planted_misalignment_shows_where_it_was_planted(toy: TorchModel) -> None:
    prompt = toy.encode_prompt(toy.render(PROBLEMS[0].messages))
    ids = [*sentences(toy, [5, 4, 6]), *greedy(toy, prompt, 5)]
    places = sentence_indices(toy, ids)
    assert places[:15] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    planted = {len(prompt) + i for i, place in enumerate(places) if place < 2}
    found = misalignment(toy, astray(toy, planted), [(prompt, ids)], bucket=10)
    assert found.by_index[:2] == [1.0, 1.0]
    assert set(found.by_index[2:]) == {0.0}
    assert found.rate == len(planted) / len(ids)
    assert len(found.by_position) == 2
    assert found.by_position[0] == sum(place < 2 for place in places[:10]) / 10
    assert sum(found.tokens.values()) == len(planted)
    same = misalignment(toy, toy, [(prompt, ids), (prompt, ids[:3])])
    assert (same.rate, set(same.by_index), set(same.by_position), sum(same.tokens.values())) == (0.0, {0.0}, {0.0}, 0)


def test_the_curve_over_positions_is_in_order(toy: TorchModel) -> None:
    prompt, ids = toy.encode_prompt(toy.render(PROBLEMS[0].messages)), sentences(toy, [3] * 6)
    late = {len(prompt) + i for i in range(12, 18)}
    assert misalignment(toy, astray(toy, late), [(prompt, ids)], bucket=6).by_position == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"), [("n=-1", "n must"), ("cap=0", "cap"), ("p=1.5", "probability"), ("p=-0.1", "probability")]
)
def test_mistakes_get_one_line(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message) as mistake:
        get_method(f"foreal({options})")
    assert "\n" not in str(mistake.value)


def test_a_draft_must_be_there_and_share_the_tokens(toy: TorchModel, tmp_path: Path) -> None:
    recordings = tmp_path / "r.jsonl"
    recordings.write_text('{"question": "1+1?", "response": "2"}\n')
    with pytest.raises(ThriftyError, match="same tokenizer"):
        get_method(f"foreal(small='replay:{recordings}')").check(toy)
    with pytest.raises(ThriftyError, match="no model 'nowhere'"):
        get_method("foreal(small=nowhere)").check(toy)


def test_defaults_are_those_of_the_card() -> None:
    assert (FoReaL().n, FoReaL().p, FoReaL().cap) == (15, 1.0, 128)


def test_there_is_nothing_to_compare_without_a_response(toy: TorchModel) -> None:
    with pytest.raises(ThriftyError, match="no response"):
        misalignment(toy, toy, [])
