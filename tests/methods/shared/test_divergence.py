"""The label pipeline: where two models part, what the large one makes of it, and the verdicts on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import make_toy
from saved_models import Tampered, worse
from thrifty.decoding.router import DIVERGENT, IDENTICAL, NEUTRAL
from thrifty.decoding.session import Session
from thrifty.methods.shared.divergence import (
    Labeller,
    continuations,
    counts,
    parse_verdict,
    same_numbers,
    sentence_ends,
    until_end,
)
from thrifty.models import load_model
from thrifty.models.base import Settings
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task

PROBLEM = next(load_task("rg:chain_sum").problems(1, seed=3))


@pytest.fixture(scope="module")
def sharp() -> TorchModel:
    return make_toy(sharpness=16.0)


@pytest.fixture(scope="module")
def small(sharp: TorchModel) -> TorchModel:
    """A model that agrees with the other one at times."""
    return worse(sharp, 0.05)


def labeller(small: TorchModel, large: TorchModel, verifier: str = "none", judge: TorchModel | None = None) -> Labeller:
    return Labeller(small, large, load_task("rg:chain_sum"), Settings(max_tokens=30, batch_size=3), verifier, judge, 6)


@torch.inference_mode()
def greedy(model: TorchModel, text: list[int], count: int) -> list[int]:
    session = Session(model)
    session.add([text])
    written: list[int] = []
    for _ in range(count):
        written.append(int(session.logits.argmax()))
        session.append([written[-1:]])
    return written


def prompt_of(model: TorchModel) -> list[int]:
    return model.encode_prompt(model.render(PROBLEM.messages))


def test_what_ends_a_sentence(toy: TorchModel) -> None:
    ends = sentence_ends(toy)
    for text in (".", ". ", "\n", "\n\n", "?", "!", "</think>", "<think>", "<|end|>"):
        (token,) = toy.encode(text)
        assert token in ends, text
    for text in (": ", ",", "5", " answer"):
        assert not set(toy.encode(text)) & ends, text
    assert not [i for i in ends if ":" in toy.texts.text([i])]


def test_a_sentence_that_a_token_leads_to() -> None:
    ends = frozenset({9})
    assert until_end([1, 2, 9, 3, 9], ends) == [1, 2, 9]
    assert until_end([9, 2, 9, 3], ends) == [9, 2, 9], "a divergent end leads to the sentence behind it"
    assert until_end([1, 2], ends) == [1, 2]


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("Hmm, 3+4=7.", "So 3+4 = 7.", True),
        ("3+4=8.", "3+4=7.", False),
        ("3.14 it is", "314 it is", False),
        ("4+3=7", "3+4=7", False),
        ("Hmm, 3-4=-1.", "So 3 - 4 = -1.", True),
        ("3-4=1.", "3-4=-1.", False),
        ("(2)-5", "(2) - 5", True),
        ("Wait, let me see.", "Hmm, let me check.", True),
        ("</think>\n\n", "Wait.\n", False),
        ("</think> 5", "</think> So 5", True),
    ],
)
def test_the_same_numbers(ours: str, theirs: str, same: bool) -> None:
    assert same_numbers(ours, theirs, ("<think>", "</think>")) is same


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("1", 1), ("0", 0), ("<<0>>", 0), ("The answer is 1.", 1), ("2 or 1", None), ("same", None), ("", None)],
)
def test_verdicts_of_a_judge(reply: str, verdict: int | None) -> None:
    assert parse_verdict(reply) == verdict


def test_continuations_are_greedy_behind_the_departure(toy: TorchModel) -> None:
    prompt, ids = prompt_of(toy), greedy(toy, prompt_of(toy), 20)
    ends = frozenset(range(0, 640, 7))
    departures = [(0, 30), (3, 14), (19, 31), (7, 50), (12, min(toy.eos_ids))]
    found = continuations(toy, prompt, ids, departures, ends, limit=8, batch_size=3)
    for (place, token), written in zip(departures, found, strict=True):
        if token in toy.eos_ids:
            assert written == [token]
            continue
        expected = [token, *greedy(toy, [*prompt, *ids[:place], token], 7)]
        assert written == until_end(expected, ends)
    assert {len(w) for w in found} - {1, 8}, "some end in a sentence end"
    assert continuations(toy, prompt, ids, [], ends, 8) == []


def test_features_are_those_that_predict_each_token(small: TorchModel, sharp: TorchModel) -> None:
    prompt, ids = prompt_of(sharp), greedy(sharp, prompt_of(sharp), 9)
    read = labeller(small, sharp).read(prompt, ids)
    assert len(read) == len(ids)
    for i in range(len(ids)):
        with torch.inference_mode():
            output = small.network(torch.tensor([[*prompt, *ids[:i]]]), output_hidden_states=True)
        torch.testing.assert_close(read.hidden[i], output.hidden_states[-1][0, -1].float())
        torch.testing.assert_close(read.top[i], output.logits[0, -1].topk(6).values.float())
        assert read.tokens[i] == output.logits[0, -1].argmax()


def test_a_model_agrees_with_itself(sharp: TorchModel) -> None:
    ids = greedy(sharp, prompt_of(sharp), 16)
    found = labeller(sharp, sharp, "numbers").label(PROBLEM, ids, sentence_ends(sharp))
    assert found.tokens.tolist() == ids
    assert counts(found.labels) == {"identical": 16, "neutral": 0, "divergent": 0}


@pytest.mark.parametrize("verifier", ["none", "numbers", "answer"])
def test_labels_of_two_models(verifier: str, small: TorchModel, sharp: TorchModel) -> None:
    ids = greedy(sharp, prompt_of(sharp), 24)
    by = labeller(small, sharp, verifier)
    found = by.label(PROBLEM, ids, sentence_ends(sharp))
    same = [a == b for a, b in zip(found.tokens.tolist(), ids, strict=True)]
    assert [label == IDENTICAL for label in found.labels.tolist()] == same
    assert 0 < sum(same) < len(ids)
    others = {label for label in found.labels.tolist() if label != IDENTICAL}
    if verifier == "none":
        assert others == {DIVERGENT}
    elif verifier == "answer":  # nothing that a random model writes holds an answer: all end alike
        assert others == {NEUTRAL}
    else:
        (prompt, ends) = (prompt_of(sharp), sentence_ends(sharp))
        for place, label in enumerate(found.labels.tolist()):
            if label == IDENTICAL:
                continue
            token = int(found.tokens[place])
            ours = sharp.texts.text(until_end([token, *greedy(sharp, [*prompt, *ids[:place], token], 29)], ends))
            theirs = sharp.texts.text(until_end(ids[place:], ends))
            assert (label == NEUTRAL) == same_numbers(ours, theirs, ("<think>", "</think>"))


def test_answers_decide_where_they_are_asked_for(pebble: TorchModel) -> None:
    """A wrong digit in the box is divergent, a wrong sign before it is not if the same answer comes of it."""
    ids = pebble.encode("2+3=5\n</think>\n\n**Final Answer:** \\boxed{5}<|end|>")
    (six,), (plus,), (minus,), (brace,) = map(pebble.encode, ("6", "+", "-", "}"))
    box, sign, start = ids.index(brace) - 1, ids.index(plus), len(prompt_of(pebble))

    def playing(changed: dict[int, int]) -> TorchModel:
        script = {start + i: changed.get(i, token) for i, token in enumerate(ids)}
        return Tampered(pebble, lambda position, _: script.get(position))

    small, large = playing({box: six, sign: minus}), playing({})
    found = labeller(small, large, "answer").label(PROBLEM, ids, sentence_ends(pebble))
    expected = [{box: DIVERGENT, sign: NEUTRAL}.get(i, IDENTICAL) for i in range(len(ids))]
    assert found.labels.tolist() == expected


def test_a_judge_is_shown_both_continuations_and_what_it_does_not_decide_is_left_out(
    small: TorchModel, sharp: TorchModel, tmp_path: Path
) -> None:
    ids, ends = greedy(sharp, prompt_of(sharp), 24), sentence_ends(sharp)
    by = labeller(small, sharp, "judge")
    partings = by.partings(PROBLEM, ids, ends)
    questions = [by.question(PROBLEM, ids, parting) for parting in partings]
    for parting, question in zip(partings, questions, strict=True):
        for some in (parting.ours, parting.theirs):
            assert f"<<{sharp.texts.text(some[:1])}>>{sharp.texts.text(some[1:])}" in question
        assert sharp.texts.text(ids[: parting.place]) in question
    replies = ["0", "1", "perhaps"]
    path = tmp_path / "judge.jsonl"
    records = [{"question": q, "response": f"{replies[i % 3]} "} for i, q in enumerate(questions)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    judge = load_model(f"replay:{path}")
    assert isinstance(judge, TorchModel)
    found = labeller(small, sharp, "judge", judge).label(PROBLEM, ids, ends)
    undecided = len(questions[2::3])
    assert len(found) == len(ids) - undecided
    assert counts(found.labels) == {
        "identical": len(ids) - len(questions),
        "neutral": len(questions[::3]),
        "divergent": len(questions[1::3]),
    }
