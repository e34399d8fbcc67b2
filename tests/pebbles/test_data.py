"""Training documents: a function of seed and index, clear of the test split, with masks that fit the tokens."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer

from data import FAMILY_WEIGHTS, LEVEL_WEIGHTS, SPECIAL_TOKENS, Documents, Pools, encode, prompt_of
from families import FAMILIES
from teacher import FORMATS, Pieces
from thrifty.models import embedded_folder
from thrifty.models.formats import FORMAT_PROMPTS
from thrifty.tasks.mix import LEVELS
from thrifty.tasks.splits import split_of

TOKENIZER = str(embedded_folder("pebble") / "tokenizer.json")

DRILLS = tuple(f"<|user|>{word}" for word in ("Copy: ", 'List: "', 'Spell: "', "Compare with ", "Divide: "))


def text_of(pieces: Pieces) -> str:
    return "".join(text for text, _ in pieces)


def test_families_levels_and_formats_are_those_of_the_product() -> None:
    assert set(FAMILY_WEIGHTS) == set(FAMILIES) == set(LEVELS["default"]) == set(LEVELS["hard"])
    assert set(LEVEL_WEIGHTS) == set(LEVELS)
    assert set(FORMATS) == set(FORMAT_PROMPTS)


def test_documents_are_a_function_of_seed_and_index() -> None:
    one, other = Documents(3), Documents(3)
    forwards = [one.pieces(i) for i in range(12)]
    assert [other.pieces(i) for i in reversed(range(12))] == forwards[::-1]
    assert len({text_of(pieces) for pieces in forwards}) == 12
    assert [Documents(4).pieces(i) for i in range(12)] != forwards


def test_documents_keep_clear_of_the_test_split() -> None:
    documents = Documents(1)
    for index in range(300):
        lesson, *_ = documents.lesson(index)
        assert split_of(lesson.question) == "train"
        assert lesson.routes


def test_a_document_is_its_prompt_and_a_completion_in_its_format() -> None:
    documents = Documents(1)
    seen = Counter[str]()
    for index in range(200):
        prompt, target = documents.pieces(index)[0]
        assert not target
        if "Look up: " in prompt or prompt.startswith(DRILLS):
            seen["drill"] += 1
            continue
        lesson, *_ = documents.lesson(index)
        systems = [name for name, system in FORMAT_PROMPTS.items() if prompt == prompt_of(lesson.question, system)]
        seen[systems[0] if systems else "none"] += 1
        assert lesson.question in prompt
        if not systems and prompt != prompt_of(lesson.question):
            seen["instruction"] += 1
            seen["none"] -= 1
    assert seen["drill"] / 200 == pytest.approx(0.14, abs=0.07)
    assert seen["instruction"] / 200 == pytest.approx(0.08, abs=0.06)  # some put it into the thinking
    assert seen["none"] / 200 == pytest.approx(0.36, abs=0.1)
    assert set(seen) == {*FORMAT_PROMPTS, "none", "drill", "instruction"}


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(TOKENIZER)


def test_masks_by_hand() -> None:
    pieces = [("<|user|>3+4?<|end|>\n<|assistant|><think>\n", False), ("3+4=", True), ("8", False), (" -> 7\n", True)]
    ids, flags = encode(tokenizer(), pieces)
    learned = [i for i, flag in zip(ids, flags, strict=True) if flag]
    assert tokenizer().decode(learned, skip_special_tokens=False) == "3+4= -> 7\n"
    assert tokenizer().decode(ids, skip_special_tokens=False) == text_of(pieces)
    assert flags[:6] == [False] * 6


def test_a_token_over_a_border_is_no_target() -> None:
    whole, _ = encode(tokenizer(), [(" legs", True)])
    split, flags = encode(tokenizer(), [(" le", True), ("gs", False)])
    assert whole == split
    assert len(whole) == 1  # frequent in the training documents
    assert flags == [False]


def test_masks_align_with_the_text() -> None:
    documents = Documents(2)
    checked = 0
    for index in range(60):
        pieces = documents.pieces(index)
        ids, flags = encode(tokenizer(), pieces)
        text = text_of(pieces)
        if not text.isascii():  # only then is one byte of a byte-level token one character
            continue
        checked += 1
        targets = [target for piece, target in pieces for _ in piece]
        position = 0
        for i, flag in zip(ids, flags, strict=True):
            spelled = tokenizer().decode([i], skip_special_tokens=False)
            assert text.startswith(spelled, position)
            assert flag == all(targets[position : position + len(spelled)])
            position += len(spelled)
        assert position == len(text)
        assert ids.count(SPECIAL_TOKENS.index("<think>")) == 1
    assert checked > 40


def test_every_digit_is_a_token() -> None:
    assert len(tokenizer().encode("1234567890").ids) == 10
    assert [tokenizer().token_to_id(name) for name in SPECIAL_TOKENS] == list(range(7))


def test_a_pool_is_learned_once_in_batches_of_bounded_size() -> None:
    pool = Pools(2, TOKENIZER, tokens=1024, size=8)[1]
    seen = []
    for ids, targets in pool:
        assert ids.shape == targets.shape
        assert ids.numel() <= 1024 or len(ids) == 1
        wanted = targets[:, :-1] != -100
        assert torch.equal(targets[:, :-1][wanted], ids[:, 1:][wanted])  # each position learns the next token
        assert (targets[:, -1] == -100).all()
        seen += [(row[row != 0].tolist(), int((t != -100).sum())) for row, t in zip(ids, targets, strict=True)]
    documents = Documents(2)
    expected = [encode(tokenizer(), documents.pieces(i)) for i in range(8, 16)]
    assert sorted(seen) == sorted((ids, sum(flags[1:])) for ids, flags in expected)
    again = Pools(2, TOKENIZER, tokens=1024, size=8)[1]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(pool, again, strict=True))


def test_batches_smaller_than_a_document_hold_one_each() -> None:
    assert [len(ids) for ids, _ in Pools(2, TOKENIZER, tokens=10, size=4)[0]] == [1] * 4
