"""Followers: they see what rows have written, read each token once, and rows that they write alone are their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from conftest import make_toy
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.follower import Follower, Handover, choices
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task

Rule = Callable[[Row], bool]


class Ruled(Handover):
    """Gives the follower the tokens that a rule names, and notes what it was asked and what came of it."""

    def __init__(self, model: TorchModel, follower: TorchModel, rule: Rule) -> None:
        super().__init__(model, follower)
        self.rule = rule
        self.asked: list[tuple[Row, int]] = []

    def leads(self, rows: Sequence[Row], logits: Tensor) -> list[bool]:
        assert all(not row.forced for row in rows)
        led = [self.rule(row) for row in rows]
        self.asked += [(row, len(row.ids)) for row, leads in zip(rows, led, strict=True) if leads]
        return led


class Shown(Controller):
    """Notes the whole text and the logits that each token was chosen from."""

    def __init__(self) -> None:
        self.seen: list[tuple[Row, list[int], Tensor]] = []

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        self.seen += [(row, [*row.prompt_ids, *row.ids], found) for row, found in zip(rows, logits, strict=True)]
        return logits


def some(row: Row) -> bool:
    """Two tokens of five, at other places in each row."""
    return (len(row.ids) + row.key) % 5 < 2


@pytest.fixture(scope="module")
def small() -> TorchModel:
    return make_toy(seed=1, sharpness=6.0)


def run(
    model: TorchModel, controllers: Sequence[Controller], count: int = 3, **values: float
) -> dict[tuple[str, int], Row]:
    settings = Settings(**{"max_tokens": 40, "batch_size": 4, **values})  # type: ignore[arg-type]  # of mixed types
    jobs = jobs_for(load_task("mix").problems(count, seed=3), 2)
    plans = ((job, Plan(model.render(job.problem.messages), controllers)) for job in jobs)
    return {(row.job.problem.id, row.job.sample): row for row in decode_rows(model, plans, settings)}


def ids(rows: dict[tuple[str, int], Row]) -> dict[tuple[str, int], list[int]]:
    return {key: row.ids for key, row in rows.items()}


@torch.inference_mode()
def after(model: TorchModel, text: list[int]) -> Tensor:
    session = Session(model)
    session.add([text])
    return session.logits[0]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_alone_each_model_writes_what_it_writes_by_itself(
    small: TorchModel, toy: TorchModel, temperature: float
) -> None:
    plain = {model: ids(run(model, [], temperature=temperature)) for model in (small, toy)}
    assert plain[small] != plain[toy]
    for led, model in ((False, small), (True, toy)):
        handover = Ruled(small, toy, lambda _, led=led: led)  # type: ignore[misc]  # a default is no parameter of Rule
        assert ids(run(small, [handover], temperature=temperature)) == plain[model]
        assert handover.follower.session.forward_passes > 0 or not led


def test_tokens_come_from_the_model_whose_turn_it_is(small: TorchModel, toy: TorchModel) -> None:
    shown = Shown()
    handover = Ruled(small, toy, some)
    rows = run(small, [handover, shown], temperature=0.8)
    led = set(handover.asked)
    assert 0.2 < len(led) / sum(len(row.ids) for row in rows.values()) < 0.6
    for row, text, logits in shown.seen[::7]:
        model = toy if (row, len(text) - len(row.prompt_ids)) in led else small
        torch.testing.assert_close(logits, after(model, text))


def test_the_batch_changes_neither_tokens_nor_shares(small: TorchModel, toy: TorchModel) -> None:
    found = []
    for size in (1, 5):
        handover = Ruled(small, toy, some)
        rows = run(small, [handover], batch_size=size, temperature=0.8)
        found.append({key: (row.ids, handover.shares(row)) for key, row in rows.items()})
    assert found[0] == found[1]


def test_every_token_is_read_once_and_accounted_for(small: TorchModel, toy: TorchModel) -> None:
    handover = Ruled(small, toy, some)
    rows = run(small, [handover])
    for row in rows.values():
        places = [place for asked, place in handover.asked if asked is row]
        own, theirs = handover.shares(row)
        forced = row.usage.injected
        assert (own.written, theirs.written) == (len(row.ids) - len(places) - forced, len(places))
        assert own.read == len(row.prompt_ids) + len(places) + forced
        # up to the last time it was asked, less what it wrote itself
        assert theirs.read == len(row.prompt_ids) + places[-1] - (len(places) - 1)
        assert theirs.passes == len(places)
        positions = len(row.prompt_ids) + places[-1]
        assert theirs.flops == pytest.approx(toy.flops(positions, 0))
        assert (own.passes, own.flops) == (row.usage.forward_passes, row.usage.flops)


def test_all_rows_catch_up_in_one_pass(small: TorchModel, toy: TorchModel) -> None:
    follower = Follower(toy)
    seen: list[int] = []

    class Asks(Controller):
        def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
            before = follower.session.forward_passes
            wanted = [row for row in rows if len(row.ids) % 4 == 3]
            if wanted:
                known = {id(row) for row in follower.rows}
                fresh = any(id(row) not in known for row in wanted)
                late = any(id(row) in known for row in wanted)
                found = follower.logits(wanted)
                seen.append(len(wanted))
                assert follower.session.forward_passes - before == fresh + late
                assert len(found) == len(wanted)
                assert torch.equal(follower.logits(wanted[::-1]), found.flip(0)), "asked again, it reads nothing"
                assert follower.session.forward_passes - before == fresh + late
                assert len(follower.session) == len(follower.rows) <= 4, "rows that have stopped are gone"
            return logits

    run(small, [Asks()])
    assert max(seen) > 1


class Rewriting(Controller):
    """Replaces what was written: by something else, and by less of it."""

    def __init__(self, shorter: bool) -> None:
        self.shorter = shorter

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if len(row.ids) == 12 and not row.state.get(self):
                row.state[self] = True
                batch.rewrite(
                    row, 5, [(row.ids[5:7], False)] if self.shorter else [(row.ids[8:10], False), ("So", True)]
                )


@pytest.mark.parametrize("shorter", [False, True])
def test_what_was_replaced_is_forgotten(shorter: bool, small: TorchModel, toy: TorchModel) -> None:
    shown = Shown()
    handover = Ruled(small, toy, lambda row: len(row.ids) % 2 == 1)
    rows = run(small, [handover, shown, Rewriting(shorter)])
    assert any(row.usage.reread for row in rows.values())
    led = set(handover.asked)
    checked = [s for s in shown.seen if (s[0], len(s[1]) - len(s[0].prompt_ids)) in led]
    for row, text, logits in checked[::3]:
        if len(text) - len(row.prompt_ids) > 6:
            torch.testing.assert_close(logits, after(toy, text))
    for row in rows.values():
        own, theirs = handover.shares(row)
        assert own.read + own.written == row.usage.total
        assert theirs.read > len(row.prompt_ids) + row.usage.reread // 2 - theirs.written


def test_what_is_read_again_is_charged_whoever_wrote_it(small: TorchModel, toy: TorchModel) -> None:
    handover = Ruled(small, toy, lambda _: True)
    rows = run(small, [handover, Rewriting(shorter=True)], answer_reserve=0, loop_stop=False)
    cut = [row for row in rows.values() if row.usage.reread]
    assert cut
    for row in cut:  # the last token that stayed, for its logits
        assert handover.shares(row)[1].read == len(row.prompt_ids) + 1


def test_logits_of_a_text_that_only_became_shorter_are_read_anew(small: TorchModel, toy: TorchModel) -> None:
    follower, texts = Follower(toy), []

    class Cuts(Controller):
        def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
            (row,) = rows
            if len(row.ids) == 9:
                follower.logits(rows)
                batch.rewrite(row, 4, [])
                texts.append([*row.prompt_ids, *row.ids])
                torch.testing.assert_close(follower.logits(rows)[0], after(toy, texts[-1]))
                row.stop("cut")

    run(small, [Cuts()], count=1, batch_size=1)
    assert len(texts) == 2


def test_forced_tokens_are_nobodys(small: TorchModel, toy: TorchModel) -> None:
    handover = Ruled(small, toy, lambda _: True)
    rows = run(small, [handover], thinking_budget=8)
    assert any(row.usage.injected for row in rows.values())
    for row in rows.values():
        own, theirs = handover.shares(row)
        assert own.written == 0
        assert theirs.written == row.usage.thinking + row.usage.answer
        assert own.read == row.usage.prompt + row.usage.generated


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_choices_are_those_of_the_loop(small: TorchModel, temperature: float) -> None:
    foreseen: dict[tuple[Row, int], int] = {}

    class Foresees(Controller):
        def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
            for row, token in zip(rows, choices(rows, logits).tolist(), strict=True):
                foreseen[row, len(row.ids)] = token
            return logits

    rows = run(small, [Foresees()], count=1, temperature=temperature, top_k=20, answer_reserve=0)
    for (row, place), token in foreseen.items():
        assert row.ids[place] == token or row.usage.injected
    assert len(foreseen) == sum(len(row.ids) for row in rows.values())
