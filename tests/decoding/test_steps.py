"""The decode loop a step at a time: rows come when they like, and what ends an answer is looked for in the answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import pytest

from conftest import make_toy
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.loop import Entry, Plan, decode, decode_steps
from thrifty.decoding.row import Row
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Problem, Trace


def entry(model: TorchModel, question: str, settings: Settings) -> Entry:
    job = Job(Problem.ask(question, id=question))
    return Entry.of(model, job, Plan(model.render(job.problem.messages)), settings)


def test_rows_that_come_later_get_the_tokens_that_they_get_alone(toy: TorchModel) -> None:
    settings = Settings(max_tokens=30, temperature=1.0)
    queue: deque[Entry] = deque()

    def entries() -> Iterator[Entry | None]:
        while True:
            yield queue.popleft() if queue else None

    steps = decode_steps(toy, entries(), size=4)
    assert [next(steps), next(steps)] == [None, None], "nothing is ready yet"
    finished: list[Row] = []
    for number in range(6):
        queue.append(entry(toy, f"{number} + 1", settings))
        finished += next(steps) or []
        finished += next(steps) or []
    while (rows := next(steps)) is not None:
        finished += rows
    assert next(steps) is None, "it goes on waiting"
    found = {row.job.problem.id: row.ids for row in finished}
    assert len(found) == 6
    for question, ids in found.items():
        ((row,),) = [rows for rows in decode_steps(toy, [entry(toy, question, settings)], size=1) if rows]
        assert row.ids == ids


class Scripted(Controller):
    """Write one text, whatever the model would write."""

    def __init__(self, script: Sequence[int]) -> None:
        self.script = script

    def next_input(self, rows: Sequence[Row], chosen: list[int]) -> None:
        for i, row in enumerate(rows):
            chosen[i] = self.script[min(len(row.ids), len(self.script) - 1)]


def scripted(script: str, settings: Settings, controllers: Sequence[Controller] = ()) -> Trace:
    model = make_toy()

    def plan(job: Job) -> Plan:
        return Plan(model.render(job.problem.messages), [Scripted(model.encode(script)), *controllers])

    (trace,) = decode(model, [Job(Problem.ask("?"))], settings, plan, "test")
    return trace


@pytest.mark.parametrize(
    ("script", "stop", "answer"),
    [
        ("a STOP</think>b STOP c", "STOP", "b STOP"),
        ("a</think>\n\nb\n\nc", "\n\n", "\n\nb\n\n"),
        ("a</think>\n\n\n\nb\n\nc", "\n", "\n\n\n\nb\n"),
        ("a b</think>\n\nb</think>c", "b", "\n\nb"),
    ],
)
def test_a_stop_string_is_looked_for_where_the_answer_begins(script: str, stop: str, answer: str) -> None:
    trace = scripted(script, Settings(stop=(stop,), loop_stop=False))
    assert trace.stop_reason == "stop"
    # the tokenizer decides whether blank lines are one token or two, so that more of them may be written
    assert trace.answer_text.strip() == answer.strip()


def test_what_was_closed_by_the_limit_stays_closed() -> None:
    trace = scripted("<think>" * 50, Settings(max_tokens=40, answer_reserve=10, loop_stop=False))
    assert trace.closed_by == "limit"
    assert trace.usage.answer >= 10
    assert trace.answer_text.endswith("<think>" * 9), "what would open a block is text"


def test_an_empty_question_hides_no_open_block(toy: TorchModel) -> None:
    job = Job(Problem.ask(" "))
    assert Entry.of(toy, job, Plan(toy.render(job.problem.messages)), Settings()).row.phase == "thinking"


class Replacing(Controller):
    """Put an aside before the newest token, once."""

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if len(row.ids) == 6 and not row.asides:
                batch.rewrite(row, 3, [("aside", True), (row.ids[3:], False)], aside=True)


def test_runs_tell_the_tokens_from_any_place_on() -> None:
    seen: list[Row] = []

    class Keep(Controller):
        def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
            seen[:] = rows

    scripted("a b c d e</think>f g h", Settings(max_tokens=20, loop_stop=False), [Replacing(), Keep()])
    (row,) = seen
    for start in range(len(row.ids) + 1):
        assert [token for _, _, ids in row.runs(start) for token in ids] == row.ids[start:]
    assert ("injected", "aside") in [(kind, phase) for kind, phase, _ in row.runs()]
