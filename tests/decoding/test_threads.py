"""Threads: who sees what, the same tokens as in one pass over everything, and nothing stored in vain."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from conftest import make_toy
from thrifty.decoding.loop import Plan, begin_row, decode_rows
from thrifty.decoding.threads import Group, Spot, ThreadPool, sees
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Problem

QUESTIONS = ("What is 2 + 3?", "Sort 5, 3, 9 and 1.", "How many legs have 4 spiders and 11 ants together?")
HEADERS = ("Thinker 1:\n", "Thinker 22:\n", "3: ")


def job(question: str) -> Job:
    return Job(Problem.ask(question, id=question))


def group(
    model: TorchModel, question: str, headers: Sequence[str], room: int, slot: int, settings: Settings | None = None
) -> Group:
    prompt = model.render([{"role": "user", "content": question}])
    settings = settings or Settings(loop_stop=False)
    plans = [Plan(prompt, prefix=header, stream=n) for n, header in enumerate(headers)]
    return Group([begin_row(model, job(question), plan, settings) for plan in plans], room, slot)


def run(pool: ThreadPool, groups: Sequence[Group]) -> list[Group]:
    pool.admit(groups)
    ended: list[Group] = []
    while pool.groups:
        ended += pool.step()
        for length, going in zip(pool.session.lengths, pool.groups, strict=True):
            assert length == len(going.prompt) + sum(len(row.ids) for row in going.threads), "only tokens are stored"
    return ended


def test_who_sees_what_in_the_unit_of_the_card() -> None:
    # p0 p1 are visible to all; a and b alternate
    threads, steps = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 1, 2, 2])
    names = ["a1", "b1", "a2", "b2"]

    def seen(by: str, visible: Tensor) -> set[str]:
        return {name for name, sight in zip(names, visible[names.index(by)].tolist(), strict=True) if sight}

    batch, interleaved = sees(threads, steps), sees(threads, steps, interleaved=True)
    assert seen("a2", batch) == {"a1", "b1", "a2"}
    assert seen("b2", batch) == {"a1", "b1", "b2"}
    assert seen("b2", interleaved) == {"a1", "b1", "a2", "b2"}
    assert seen("a2", interleaved) == {"a1", "b1", "a2"}
    alone = sees(threads, steps, shared=False, interleaved=True)
    assert seen("a2", alone) == {"a1", "a2"}
    assert seen("b1", alone) == {"b1"}


def test_positions_of_the_card(toy: TorchModel) -> None:
    threads = group(toy, "?", ["", ""], room=5, slot=10)
    for row in threads.threads:
        row.prompt_ids = [7, 8]
    spots = [Spot(0, 0, 1), Spot(0, 1, 2), Spot(1, 0, 1), Spot(1, 1, 2)]
    assert [threads.position(spot) for spot in spots] == [2, 3, 12, 13]


def reference(model: TorchModel, found: Group, shared: bool, interleaved: bool) -> list[list[int]]:
    """What each thread should have written, token by token, from one pass over all that was written."""
    prompt, latest = len(found.prompt), max(found.headers)
    spots = [(n, k) for n, row in enumerate(found.threads) for k in range(len(row.ids))]
    steps = [k if k < found.headers[n] else latest + k - found.headers[n] for n, k in spots]
    mask = torch.ones(prompt + len(spots), prompt + len(spots)).tril().bool()
    mask[prompt:, prompt:] = sees(torch.tensor([n for n, _ in spots]), torch.tensor(steps), shared, interleaved)
    positions = [*range(prompt), *(found.position(Spot(n, k, 0)) for n, k in spots)]
    ids = [*found.prompt, *(found.threads[n].ids[k] for n, k in spots)]
    with torch.no_grad():
        output = model.network(
            torch.tensor([ids]), attention_mask=mask[None, None], position_ids=torch.tensor([positions])
        )
    best = output.logits[0, :, : model.vocabulary_size].argmax(-1).tolist()
    places = {spot: prompt + i for i, spot in enumerate(spots)}
    return [
        [best[places.get((n, k - 1), prompt - 1)] for k in range(header, len(row.ids))]
        for n, (row, header) in enumerate(zip(found.threads, found.headers, strict=True))
    ]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_steps_are_one_pass_over_everything_that_was_written(shared: bool, interleaved: bool) -> None:
    model = make_toy()
    model.eos_ids = frozenset(range(0, model.vocabulary_size, 12))  # so that threads end at different steps
    groups = [group(model, q, HEADERS[: 3 - i % 2], room=14 + i, slot=40) for i, q in enumerate(QUESTIONS)]
    ended = run(ThreadPool(model, shared, interleaved), groups)
    assert {id(g) for g in ended} == {id(g) for g in groups}
    written = [len(row.ids) - header for g in ended for row, header in zip(g.threads, g.headers, strict=True)]
    assert len(set(written)) > 2, "threads must end at different steps, or nothing is padded"
    assert "eos" in {row.stopped for g in ended for row in g.threads}
    for found in ended:
        expected = reference(model, found, shared, interleaved)
        assert expected == [row.ids[h:] for row, h in zip(found.threads, found.headers, strict=True)]
        assert found.steps == max(len(row.ids) - h for row, h in zip(found.threads, found.headers, strict=True))
        assert found.usage.forward_passes == found.steps + 1, "a pass for the prompt, one for headers, none for the end"


def test_what_others_write_makes_a_difference(toy: TorchModel) -> None:
    texts = []
    for pool in (ThreadPool(toy), ThreadPool(toy, shared=False), ThreadPool(toy, interleaved=True)):
        (ended,) = run(pool, [group(toy, QUESTIONS[0], HEADERS, room=20, slot=40)])
        texts.append([row.ids for row in ended.threads])
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_threads_that_do_not_see_each_other_are_decodes_of_their_own(toy: TorchModel, temperature: float) -> None:
    settings = Settings(max_tokens=40, temperature=temperature, answer_reserve=0)
    groups = [group(toy, q, HEADERS, 24, 0, settings) for q in QUESTIONS]
    for ended in run(ThreadPool(toy, shared=False), groups):
        question = ended.threads[0].job.problem.question
        prompt = toy.render([{"role": "user", "content": question}])
        plans = [(job(question), Plan(prompt, prefix=h, stream=n)) for n, h in enumerate(HEADERS)]
        rows = {row.text()[:9]: row for row in decode_rows(toy, plans, settings)}
        assert len(rows) == len(HEADERS)
        for thread in ended.threads:
            assert rows[thread.text()[:9]].ids[: len(thread.ids)] == thread.ids
        assert ended.steps > 8


def test_groups_may_enter_and_leave_at_any_time(toy: TorchModel) -> None:
    def one(index: int) -> Group:
        return group(toy, QUESTIONS[index], HEADERS[: 1 + index], room=4 + 5 * index, slot=40)

    alone = [[row.ids for row in run(ThreadPool(toy), [one(i)])[0].threads] for i in range(3)]
    pool, late = ThreadPool(toy), one(0)
    groups = [one(1), one(2)]
    pool.admit(groups)
    for step in range(20):
        if step == 3:
            pool.admit([late])
        pool.step()
        if not pool.groups:
            break
    assert [[row.ids for row in g.threads] for g in (late, *groups)] == alone


def test_a_single_thread_keeps_what_an_ordinary_decode_has_stored(toy: TorchModel) -> None:
    (ended,) = run(ThreadPool(toy), [group(toy, QUESTIONS[0], [""], room=9, slot=0)])
    assert ended.kept is not None
    whole = [*ended.prompt, *ended.threads[0].ids]
    assert ended.kept.lengths == [len(whole)]
    with torch.no_grad():
        expected = toy.network(torch.tensor([whole])).logits[0, -1, : toy.vocabulary_size]
    torch.testing.assert_close(ended.kept.logits[0], expected)
