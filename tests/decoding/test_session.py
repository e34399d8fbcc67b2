"""Session against plain forward passes: rows never see each other, verbs undo each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import make_toy
from thrifty.decoding.session import Session
from thrifty.errors import ContextOverflow
from thrifty.models.torch import TorchModel

TOY = make_toy()
ids = st.integers(7, 600)
rows = st.lists(st.lists(ids, min_size=1, max_size=9), min_size=1, max_size=5)


def plain(model: TorchModel, row: list[int]) -> torch.Tensor:
    """Logits behind a row, computed alone and without any cache."""
    with torch.no_grad():
        return model.network(torch.tensor([row]), use_cache=False).logits[0, -1, : model.vocabulary_size]


def check(session: Session, expected: list[list[int]]) -> None:
    assert session.lengths == [len(row) for row in expected]
    for i, row in enumerate(expected):
        torch.testing.assert_close(session.logits[i], plain(session.model, row), rtol=1e-5, atol=1e-5)


def test_ragged_prompts_equal_single_rows(toy: TorchModel) -> None:
    session = Session(toy)
    prompts = [[9, 8, 7, 20], [30], [40, 41, 42, 43, 44, 45]]
    session.add(prompts)
    check(session, prompts)
    session.add([[50, 51]])
    check(session, [*prompts, [50, 51]])


class Mirror:
    """A session and the token lists it should hold."""

    def __init__(self) -> None:
        self.session, self.rows = Session(TOY), []

    def add(self, prompts: list[list[int]]) -> None:
        self.session.add(prompts)
        self.rows += [list(p) for p in prompts]


@given(prompts=rows, data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_sequence_of_verbs_equals_plain_forward_passes(prompts: list[list[int]], data: st.DataObject) -> None:
    mirror = Mirror()
    mirror.add(prompts)
    for _ in range(data.draw(st.integers(1, 6))):
        count = len(mirror.rows)
        verb = data.draw(st.sampled_from(["token", "ragged", "all", "rewind", "drop", "add", "fork"]))
        if verb == "token":
            tokens = data.draw(st.lists(ids, min_size=count, max_size=count))
            mirror.session.append(torch.tensor(tokens))
            for row, token in zip(mirror.rows, tokens, strict=True):
                row.append(token)
        elif verb == "ragged":
            chunk = data.draw(st.lists(st.lists(ids, max_size=4), min_size=count, max_size=count))
            mirror.session.append(chunk)
            for row, more in zip(mirror.rows, chunk, strict=True):
                row.extend(more)
        elif verb == "all":
            chunk = data.draw(st.lists(st.lists(ids, min_size=3, max_size=3), min_size=count, max_size=count))
            logits = mirror.session.append_all(torch.tensor(chunk))
            for i, (row, more) in enumerate(zip(mirror.rows, chunk, strict=True)):
                for step, token in enumerate(more):
                    row.append(token)
                    torch.testing.assert_close(logits[i, step], plain(TOY, row), rtol=1e-5, atol=1e-5)
        elif verb == "rewind":
            i = data.draw(st.integers(0, count - 1))
            back = data.draw(st.integers(0, len(mirror.rows[i]) - 1))
            mirror.session.rewind(i, back)
            del mirror.rows[i][len(mirror.rows[i]) - back :]
            mirror.session.append([[11]] * count)  # a rewound row's logits are stale until then
            for row in mirror.rows:
                row.append(11)
        elif verb == "drop" and count > 1:
            gone = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
            order = mirror.session.drop(sorted(gone))
            assert sorted(order) == [i for i in range(count) if i not in gone]
            mirror.rows = [mirror.rows[i] for i in order]
        elif verb == "add":
            mirror.add(data.draw(rows))
        elif verb == "fork":
            chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3))
            copy = mirror.session.fork(chosen)
            copy.append([[12, 13]] * len(chosen))
            check(copy, [[*mirror.rows[i], 12, 13] for i in chosen])
        check(mirror.session, mirror.rows)


@pytest.mark.parametrize("asked", [(1,), (0, 2), (2, 3), (0, 1, 2, 3)])
def test_only_rows_that_are_asked_take_part_in_a_pass(asked: tuple[int, ...], toy: TorchModel) -> None:
    expected = [[9, 8, 7, 20], [30], [40, 41, 42], [60, 61, 62]]
    session = Session(toy)
    session.add(expected)
    shapes: list[torch.Size] = []
    hook = toy.network.register_forward_pre_hook(
        lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    try:
        for step in range(3):
            more = [[100 + 10 * row + step] * (1 + row % 2) if row in asked else [] for row in range(len(expected))]
            session.append(more)
            expected = [[*row, *new] for row, new in zip(expected, more, strict=True)]
    finally:
        hook.remove()
    assert {shape[0] for shape in shapes} == {len(asked)}
    check(session, expected)


def test_embeddings_of_a_token_equal_the_token(toy: TorchModel) -> None:
    session = Session(toy)
    session.add([[9, 8], [7, 20, 21]])
    session.append_embeddings(toy.embed(torch.tensor([30, 31])))
    check(session, [[9, 8, 30], [7, 20, 21, 31]])


def test_tap_gives_the_state_at_each_rows_last_token_and_leaves_no_hook(toy: TorchModel) -> None:
    def states(row: list[int]) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return toy.network(torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states

    session = Session(toy)
    states([9])  # transformers leaves a hook of its own at the first call
    before = sum(len(module._forward_hooks) for module in toy.network.modules())
    with session.tap([0, 1]):
        session.add([[9, 8, 7], [20]])
        session.append([[], [21, 22]])
        torch.testing.assert_close(session.hidden[1][0], states([9, 8, 7])[1][0, -1], rtol=1e-5, atol=1e-6)
        session.append(torch.tensor([30, 31]))
        for layer in (0, 1):
            for i, row in enumerate([[9, 8, 7, 30], [20, 21, 22, 31]]):
                torch.testing.assert_close(session.hidden[layer][i], states(row)[layer][0, -1], rtol=1e-5, atol=1e-6)
    assert sum(len(module._forward_hooks) for module in toy.network.modules()) == before


def test_rows_enter_and_leave_whether_they_were_tapped_or_not(toy: TorchModel) -> None:
    def state(row: list[int]) -> torch.Tensor:
        with torch.no_grad():
            states: torch.Tensor = toy.network(torch.tensor([row]), output_hidden_states=True).hidden_states[1][0, -1]
        return states

    untapped, session, single = Session(toy), Session(toy), Session(toy)
    untapped.add([[9, 8]])
    session.adopt(untapped)
    assert not session.hidden
    with session.tap([1]):
        session.add([[20, 21, 22]])
    with single.tap([1]):
        single.add([[30]])
    session.adopt(single)
    assert bool(session.hidden[1][0].isnan().all()), "an unknown state must not pass for one"
    torch.testing.assert_close(session.hidden[1][1], state([20, 21, 22]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(session.hidden[1][2], state([30]), rtol=1e-5, atol=1e-6)
    session.adopt(untapped)
    session.drop([0])
    torch.testing.assert_close(session.hidden[1][1], state([20, 21, 22]), rtol=1e-5, atol=1e-6)
    with session.tap([1]):
        session.append(torch.tensor([40, 41, 42]))
    for i, row in enumerate([[9, 8, 40], [20, 21, 22, 41], [30, 42]]):
        torch.testing.assert_close(session.hidden[1][i], state(row), rtol=1e-5, atol=1e-6)
    session.append(torch.tensor([50, 51, 52]))
    assert not session.hidden, "a state that the rows have left behind is not kept"


def test_a_prompt_longer_than_the_context_is_refused_with_its_length(toy: TorchModel) -> None:
    with pytest.raises(ContextOverflow, match="512 tokens"):
        Session(toy).add([[9] * 512])


def test_rewinding_a_whole_row_is_refused(toy: TorchModel) -> None:
    session = Session(toy)
    session.add([[9, 8]])
    with pytest.raises(ValueError, match="rewind"):
        session.rewind(0, 2)
