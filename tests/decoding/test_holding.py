"""Sessions under a policy: what is evicted is gone for good, and everything else is as if it had never been there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from evictions import POLICIES, attended, newest
from thrifty.decoding.draft import Draft
from thrifty.decoding.session import Session
from thrifty.models.torch import TorchModel

PROMPTS = [[9, 8, 7, 20, 31, 32, 33, 34], [30, 5], [40, 41, 42, 43]]


# -- Against a network without any cache ---------------------------------------------------------------------


@contextmanager
def masked(network: Any, masks: Sequence[Tensor]) -> Iterator[None]:
    """Let the layers of a network attend as masks say ``(heads, tokens, tokens)``, one a layer."""

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, scaling: float, **_: Any) -> Any:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        hidden = ~masks[module.layer_idx]
        weights = (query @ key.transpose(2, 3) * scaling).masked_fill(hidden, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("masked", attention)
    network.config._attn_implementation = "masked"
    try:
        yield
    finally:
        network.config._attn_implementation = "sdpa"


def logits_of(model: TorchModel, ids: list[int], masks: Sequence[Tensor]) -> Tensor:
    with torch.no_grad(), masked(model.network, masks):
        return model.network(torch.tensor([ids]), use_cache=False).logits[0, :, : model.vocabulary_size]


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_equals_a_network_that_is_masked_so(toy: TorchModel, window: int) -> None:
    """Positions, masks and what is compacted are right: every query saw what its row held at that time."""
    session = Session(toy, newest(window))
    session.add(PROMPTS)
    rows, held = [list(p) for p in PROMPTS], [list(range(len(p))) for p in PROMPTS]
    masks = [torch.ones(60, 60, dtype=torch.bool).tril() for _ in rows]
    for step in range(1, 20):
        session.append(torch.tensor([50 + step, 70 + step, 90 + step]))
        for i, row in enumerate(rows):
            row.append(50 + 20 * i + step)
            held[i].append(len(row) - 1)
            masks[i][len(row) - 1] = False
            masks[i][len(row) - 1, held[i]] = True
            if step % window == 0 and len(held[i]) > 6:
                held[i] = [*held[i][:2], *held[i][-4:]]
            mask = masks[i][: len(row), : len(row)].expand(4, -1, -1)
            expected = logits_of(toy, row, [mask] * 2)[-1]
            torch.testing.assert_close(session.logits[i], expected, rtol=1e-6, atol=1e-8)
    assert session.lengths == [len(h) for h in held]
    assert session.positions == [len(row) for row in rows]


def test_heads_and_layers_keep_different_entries(toy: TorchModel) -> None:
    """The same where every key-value head of every layer keeps what it likes, followed from outside."""
    policy = attended(window=2, budget=5)
    held: list[list[list[int]]] = [[list(range(8)) for _ in range(2)] for _ in range(2)]
    inner = policy.choose

    def followed(layer: int, *args: Any) -> Tensor:
        index = inner(layer, *args)
        for head in range(2):
            held[layer][head] = [held[layer][head][c] for c in index[0, head].tolist()]
        return index

    policy.choose = followed  # type: ignore[method-assign]  # the test looks over its shoulder
    session, row = Session(toy, policy), list(PROMPTS[0])
    session.add([row])
    masks = [torch.ones(2, 60, 60, dtype=torch.bool).tril() for _ in range(2)]
    for step in range(1, 16):
        row.append(50 + step)
        for layer in range(2):
            for head in range(2):
                held[layer][head].append(len(row) - 1)
                masks[layer][head, len(row) - 1] = False
                masks[layer][head, len(row) - 1, held[layer][head]] = True
        session.append(torch.tensor([row[-1]]))
        grouped = [mask[:, : len(row), : len(row)].repeat_interleave(2, 0) for mask in masks]
        torch.testing.assert_close(session.logits[0], logits_of(toy, row, grouped)[-1], rtol=1e-6, atol=1e-8)
    # the step at which an entry came moves with it
    for layer in range(2):
        marks = session.cache.layers[layer].marks[0, :, : session.lengths[0], 0].tolist()
        assert marks == [[max(0, position - 7) for position in head] for head in held[layer]]
    assert held[0][0] != held[0][1] or held[0] != held[1]


# -- The verbs -----------------------------------------------------------------------------------------------


@POLICIES
def test_rows_do_not_depend_on_their_neighbours(toy: TorchModel, make: Any) -> None:
    together, alone = Session(toy, make()), [Session(toy, make()) for _ in PROMPTS]
    together.add(PROMPTS[:2])
    for session, prompt in zip(alone, PROMPTS, strict=True):
        session.add([prompt])
    for step in range(16):
        if step == 5:
            together.add(PROMPTS[2:])
        together.append(torch.tensor([50 + step, 80 + step, 110 + step][: len(together)]))
        for i, session in enumerate(alone[: len(together)]):
            session.append(torch.tensor([50 + 30 * i + step]))
            torch.testing.assert_close(together.logits[i], session.logits[0], rtol=1e-9, atol=1e-10)
        assert together.lengths == [s.lengths[0] for s in alone[: len(together)]]
    assert together.drop([0]) == [2, 1]
    together.append(torch.tensor([3, 4]))
    for i, session in ((0, alone[2]), (1, alone[1])):
        session.append(torch.tensor([3 + i]))
        torch.testing.assert_close(together.logits[i], session.logits[0], rtol=1e-9, atol=1e-10)
        assert together.held.rows[i] == session.held.rows[0]


@POLICIES
def test_a_fork_attends_as_its_row_would_and_leaves_it_alone(toy: TorchModel, make: Any) -> None:
    def steps(session: Session, start: int, stop: int) -> None:
        for step in range(start, stop):
            session.append(torch.tensor([50 + step] * len(session)))

    plain, forked = Session(toy, make()), Session(toy, make())
    for session in (plain, forked):
        session.add([PROMPTS[0], PROMPTS[2]])
        steps(session, 0, 11)
    copy = forked.fork([1, 0, 1])
    stored = list(copy.lengths)
    copy.append([[60, 61, 62]] * 3)
    steps(copy, 0, 9)
    assert copy.lengths == [n + 12 for n in stored], "a probe evicts nothing"
    assert [h.attended for h in copy.held.rows] == [forked.held.rows[i].attended for i in (1, 0, 1)]
    fresh = forked.fork([0])
    fresh.append(torch.tensor([61]))
    steps(plain, 11, 12)
    forked.append(torch.tensor([61, 61]))
    torch.testing.assert_close(fresh.logits[0], forked.logits[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(plain.logits, forked.logits, rtol=1e-9, atol=1e-10)
    assert plain.held.rows == forked.held.rows
    assert plain.lengths == forked.lengths


@POLICIES
def test_what_is_taken_over_goes_on_as_it_was(toy: TorchModel, make: Any) -> None:
    whole, other, target = (Session(toy, make()) for _ in range(3))
    whole.add([PROMPTS[0]])
    other.add([PROMPTS[1], PROMPTS[0]])
    target.add([PROMPTS[2]])
    for step in range(10):
        whole.append(torch.tensor([50 + step]))
        other.append(torch.tensor([9, 50 + step]))
    target.adopt(other.fork([1]))
    target.put(0, other.fork([1]))
    for step in range(10, 22):
        whole.append(torch.tensor([50 + step]))
        target.append(torch.tensor([50 + step, 50 + step]))
    for row in (0, 1):
        torch.testing.assert_close(target.logits[row], whole.logits[0], rtol=1e-9, atol=1e-10)
        assert target.held.rows[row] == whole.held.rows[0]


def test_a_row_without_marks_is_taken_for_a_prompt(toy: TorchModel) -> None:
    plain, target = Session(toy), Session(toy, attended())
    plain.add([PROMPTS[0]])
    target.adopt(plain)
    assert not target.cache.layers[0].marks.any()
    target.append(torch.tensor([5]))
    assert target.cache.layers[1].marks[0, :, :9, 0].tolist() == [[0.0] * 8 + [1.0]] * 2


def test_nothing_is_rewound_over_an_eviction(toy: TorchModel) -> None:
    session = Session(toy, newest(window=4, budget=8))
    session.add([PROMPTS[0]])
    for step in range(6):
        session.append(torch.tensor([50 + step]))
    assert (session.lengths, session.positions) == ([10], [14])
    expected = session.logits.clone()
    session.append([[1, 2, 3]])
    session.rewind(0, 5)  # to the step of the eviction: 12 tokens
    session.append([[54, 55]])
    torch.testing.assert_close(session.logits, expected, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match="evicted since"):
        session.rewind(0, 3)


@POLICIES
def test_vectors_are_tokens_to_a_policy(toy: TorchModel, make: Any) -> None:
    tokens, vectors = Session(toy, make()), Session(toy, make())
    for session in (tokens, vectors):
        session.add([PROMPTS[0]])
    for step in range(14):
        tokens.append(torch.tensor([50 + step]))
        vectors.append_embeddings(toy.embed(torch.tensor([50 + step])))
    torch.testing.assert_close(tokens.logits, vectors.logits, rtol=1e-9, atol=1e-10)
    assert tokens.held.rows == vectors.held.rows


@POLICIES
def test_a_path_through_a_draft_is_its_tokens_one_by_one(toy: TorchModel, make: Any) -> None:
    """Marks and evictions too, in the order in which the tokens come true."""
    tree = Draft([5, 6, 7, 8, 9, 10], [-1, -1, 0, 0, 2, 1])
    for path in ([5, 7, 9], [6, 10], [5, 8], []):
        drafted, plain = Session(toy, make()), Session(toy, make())
        for session in (drafted, plain):
            session.add([PROMPTS[0], PROMPTS[1]])
        for step in range(9):
            room = drafted.held.room(0, drafted.lengths[0], 6)
            drafted.append_drafted(torch.tensor([50 + step, 9]), [tree.clipped(room), Draft([], [])])
            plain.append(torch.tensor([50 + step, 9]))
            for token in path[:room]:
                assert drafted.follow([0], [[token]]) == [1]
                plain.append([[token], []])
            torch.testing.assert_close(drafted.logits, plain.logits, rtol=1e-9, atol=1e-10)
            assert drafted.held.rows == plain.held.rows
            for one, other in zip(drafted.cache.layers, plain.cache.layers, strict=True):
                for row, stored in enumerate(plain.lengths):
                    for name in one.names:
                        found, expected = (getattr(layer, name)[row, :, :stored] for layer in (one, other))
                        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_the_account(toy: TorchModel) -> None:
    """A prompt of 8 and 10 steps, every fourth evicting down to 8 of 12, by hand."""
    session = Session(toy, newest(window=4, budget=8))
    session.add([PROMPTS[0]])
    for step in range(10):
        session.append(torch.tensor([50 + step]))
    stored = [9, 10, 11, 12, 9, 10, 11, 12, 9, 10]
    assert session.held.account(0, session.lengths[0]) == {
        "newest": {
            "attended": 2 * sum(stored),
            "full": 2 * sum(range(9, 19)),
            "peak": 12,
            "kept": 10,
            "evicted": 8,
            "evictions": 2,
            "metadata": 0,
        }
    }
    plain = Session(toy)
    plain.add([PROMPTS[0]])
    assert plain.held.account(0, 8) == {}
