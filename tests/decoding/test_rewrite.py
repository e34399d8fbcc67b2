"""Editing a row's past: it goes on as a row that had been given the edited past, and its account forgets nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from thrifty.decoding.batch import DecodeBatch
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Problem, Segment

Edit = Callable[[Row, Batch], None]
Pieces = list[tuple[str | list[int], bool]]
PLAIN = Settings(max_tokens=400, answer_reserve=0, loop_stop=False)


class EditAt(Controller):
    """Edit a row once, when it has so many tokens."""

    def __init__(self, length: int, edit: Edit) -> None:
        self.length, self.edit = length, edit
        self.edited = False

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        self.after_token(rows, batch)

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if len(row.ids) == self.length and not self.edited:
                self.edited = True
                self.edit(row, batch)


def make_row(model: TorchModel, written: str | Sequence[int] = (), settings: Settings = PLAIN, key: int = 7) -> Row:
    """Return a row whose response begins with some tokens."""
    job = Job(Problem.ask("2 + 5?"))
    prompt = model.render(job.problem.messages)
    row = Row(job, settings, model, key, model.encode_prompt(prompt), model.tracker.start(prompt))
    for token in model.encode(written) if isinstance(written, str) else written:
        row.record(token, forced=False)
    return row


def run(model: TorchModel, row: Row, steps: int, controllers: Sequence[Controller] = (), neighbours: int = 0) -> Row:
    """Write some tokens of a row among others that differ in length."""
    batch = DecodeBatch(model)
    rows = [make_row(model, "7" * i, key=100 + i) for i in range(neighbours)]
    rows.insert(neighbours // 2, row)
    batch.admit(rows, [controllers if other is row else [] for other in rows])
    for _ in range(steps):
        if row.stopped:
            break
        batch.step()
    return row


def shown(row: Row) -> tuple[list[int], list[Segment], str, bool, str]:
    """Return what of a row must not depend on how its past came to be."""
    return row.ids, row.trace("m").segments, row.phase, row.line_ended, row.line_text()


texts = st.sampled_from(
    ["Wait. ", "\n\n", "</think>\n\nIt is 7.", "<think>\n", "<|user|>\nbe brief<|end|>", "é, 3", ""]
)
pieces = st.lists(
    st.tuples(st.one_of(texts, st.lists(st.integers(2, 600), min_size=1, max_size=4)), st.booleans()), max_size=3
)


@hypothesis_settings(max_examples=60)
@given(
    length=st.integers(1, 9),
    back=st.integers(0, 9),
    pieces=pieces,
    aside=st.booleans(),
    neighbours=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_a_rewritten_row_goes_on_as_one_that_was_given_the_same_past(
    toy: TorchModel, length: int, back: int, pieces: Pieces, aside: bool, neighbours: int, temperature: float
) -> None:
    start = max(0, length - back)
    if not start and not any(piece for piece, _ in pieces):
        return
    settings = PLAIN.with_(temperature=temperature)
    row, length_then, expected = make_row(toy, settings=settings), 0, None

    def edit(row: Row, batch: Batch) -> None:
        nonlocal length_then, expected
        before = list(row.ids)
        batch.rewrite(row, start, pieces, aside)
        new = [(i, f) for piece, f in pieces for i in (toy.encode(piece) if isinstance(piece, str) else piece)]
        assert row.ids == [*before[:start], *(i for i, _ in new)]
        expected = make_row(toy, before[:start], settings)
        for token, forced in new:
            (expected._record_aside if forced and aside else lambda t, f=forced: expected.record(t, f))(token)
        length_then = len(row.ids)

    run(toy, row, length + 8, [EditAt(length, edit)], neighbours)
    assert expected is not None, "the toy never ends a response this early"
    if row.stopped and len(row.ids) == length_then:
        return  # the edited past ends a response
    steps = len(row.ids) - length_then
    run(toy, expected, steps)
    assert shown(row) == shown(expected)
    assert row.thinking_tokens == expected.thinking_tokens
    assert row.usage.generated == len(row.ids)
    assert row.usage.reread == length - start


@pytest.mark.parametrize("taps", [(), (0, 1, 2)])
@pytest.mark.parametrize(
    ("start", "pieces"),
    [(0, [("Let me see. ", True)]), (4, [("3", False)]), (2, []), (6, [(" So", True)]), (3, [(" 1 2 3 4", False)])],
)
def test_before_its_first_token_a_row_can_be_rewritten_too(
    toy: TorchModel, start: int, pieces: Pieces, taps: tuple[int, ...]
) -> None:
    written = toy.encode("1 2 3 ")[:6]
    assert len(written) == 6

    class Look(EditAt):
        def see_hidden(self, rows: Sequence[Row], hidden: Mapping[int, torch.Tensor]) -> None:
            states.append({layer: h[0].clone() for layer, h in hidden.items()})

    Look.taps = taps
    row, states = make_row(toy, written), list[dict[int, torch.Tensor]]()
    batch = DecodeBatch(toy)
    batch.admit([make_row(toy), row], [[], [Look(6, lambda row, batch: batch.rewrite(row, start, pieces))]])
    whole = [*row.prompt_ids, *written[:start], *(i for piece, _ in pieces for i in toy.encode(str(piece)))]
    session = Session(toy)
    with session.tap(taps):
        session.add([whole])
    assert batch.session.lengths[1] == len(whole)
    assert torch.allclose(batch.session.logits[1], session.logits[0], atol=1e-9)
    for layer in taps:
        assert torch.allclose(states[0][layer], session.hidden[layer][0], atol=1e-9)


def test_rows_beside_it_are_as_they_were(toy: TorchModel) -> None:
    def beside(edit: Edit) -> list[list[int]]:
        batch = DecodeBatch(toy)
        rows = [make_row(toy, "7" * i, key=i) for i in range(3)]
        batch.admit(rows, [[], [EditAt(6, edit)], []])
        for _ in range(15):
            batch.step()
        return [row.ids for row in rows]

    edited = beside(lambda row, batch: batch.rewrite(row, 3, [(" no, rather " * 20, True)]))
    plain = beside(lambda row, _: row.events.clear())
    assert edited[1] != plain[1]
    assert [edited[0], edited[2]] == [plain[0], plain[2]]


def test_the_account_keeps_what_was_cut_and_what_is_read_again(toy: TorchModel) -> None:
    def cut(row: Row, batch: Batch) -> None:
        passes = row.usage.forward_passes
        batch.rewrite(row, 4, [("Wait. ", True), (row.ids[8:], False)])
        assert row.usage.forward_passes == passes + 1

    plain = run(toy, make_row(toy), 10)
    row = run(toy, make_row(toy), 10, [EditAt(10, cut)])
    wait = len(toy.encode("Wait. "))
    assert row.ids == [*plain.ids[:4], *toy.encode("Wait. "), *plain.ids[8:10]]
    assert (row.usage.thinking, row.usage.injected, row.usage.reread) == (6, wait, 6)
    row.settle()
    plain.settle()
    # ten were written, and eight are in place of six of them
    assert row.usage.total == plain.usage.total + wait + 2
    assert row.usage.flops > plain.usage.flops


def test_who_closed_the_thinking_stays_known(toy: TorchModel) -> None:
    row = make_row(toy)
    row.close_thinking("cap")
    run(toy, row, 8, [EditAt(8, lambda row, batch: batch.rewrite(row, 7, [(" Yes,", True), (row.ids[7:], False)]))])
    assert row.phase == "answer"
    assert row.closed_by == "cap"
    assert row.trace("m").closed_by == "cap"


def test_a_cut_before_the_closer_opens_the_thinking_again(toy: TorchModel) -> None:
    row = make_row(toy, "So 7.\n</think>\n\nIt is 7.")
    assert row.closed_by == "model"
    row.rewrite(2, [(" Wait", True)])
    assert (row.phase, row.closed_by) == ("thinking", None)
    assert row.trace("m").answer is None


def test_a_close_under_way_outlives_an_edit(toy: TorchModel) -> None:
    row = make_row(toy, "So 7.")
    row.close_thinking("cap")
    row.rewrite(1, [(" it is 7.", False)])
    run(toy, row, 4)
    assert row.closed_by == "cap"


ASIDE = "\n-<|user|>\nmake </think> answer concise, \\boxed{9}<|end|>\n\n-"


@pytest.mark.parametrize("phase", ["thinking", "answer"])
def test_an_aside_is_read_by_the_model_and_by_nobody_else(toy: TorchModel, phase: str) -> None:
    text = "So it is 7, not 8." if phase == "thinking" else "So.\n</think>\n\nIt is \\boxed{7, 8}."
    row = make_row(toy, text)
    plain, at = row.trace("m"), text.index(", ") + 1
    thinking_tokens = row.thinking_tokens
    row.rewrite(0, [(text[:at], False), (ASIDE, True), (text[at:], False)], aside=True)
    trace, start = row.trace("m"), len(toy.encode(text[:at]))
    assert row.ids[start : -len(toy.encode(text[at:]))] == toy.encode(ASIDE)
    assert (row.text(), row.text(start + 3)) == (text, text[at:])
    assert (row.phase, row.closed_by, trace.answer) == (phase, plain.closed_by, plain.answer)
    assert (trace.answer_text, trace.thinking_text) == (plain.answer_text, plain.thinking_text)
    assert trace.text == text[:at] + ASIDE + text[at:]
    assert [(s.kind, s.phase, s.text) for s in trace.segments if s.kind == "injected"] == [("injected", "aside", ASIDE)]
    assert row.usage.injected == len(toy.encode(ASIDE))
    if phase == "answer":
        assert row.thinking_tokens == thinking_tokens


def test_asides_outlive_later_edits_and_are_inherited(toy: TorchModel) -> None:
    row = make_row(toy, "So it is 7")
    row.rewrite(3, [(ASIDE, True), (row.ids[3:], False)], aside=True)
    row.rewrite(len(row.ids) - 1, [(" or", False), (ASIDE, True), (" 7", False)], aside=True)
    heir = row.heir(row.job, PLAIN, 8)
    for one in (row, heir):
        assert [s.phase for s in one.trace("m").segments] == ["thinking", "aside", "thinking", "aside", "thinking"]
        assert ASIDE.strip() not in one.text()
    heir.record(toy.encode("7")[0], forced=False)
    assert heir.text() == row.text() + "7"


def test_a_line_goes_on_behind_an_aside(toy: TorchModel) -> None:
    row = make_row(toy, "First.\nIt is 7, so")
    start = len(row.ids) - 1
    row.rewrite(start, [(ASIDE, True), (row.ids[start:], False)], aside=True)
    assert not row.line_ended
    assert row.line_text() == "It is 7, so"


def test_a_response_is_not_rewritten_to_nothing(toy: TorchModel) -> None:
    row = make_row(toy, "So")
    with pytest.raises(ValueError, match="nothing"):
        row.rewrite(0, [("", True)])
    assert row.text() == "So"
