"""The decode loop: Hugging Face's tokens, whatever the batch; limits that leave room for an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from conftest import make_toy
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.errors import ContextOverflow
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem, Trace


def problems(count: int) -> list[Problem]:
    return list(load_task("mix").problems(limit=count, seed=3))


def run(
    model: TorchModel, jobs: Sequence[Job], settings: Settings, controllers: Sequence[Controller] = ()
) -> dict[tuple[str, int], Trace]:
    def plan(job: Job) -> Plan:
        return Plan(model.render(job.problem.messages), controllers)

    return {(t.problem_id, t.sample): t for t in decode(model, jobs, settings, plan, "test")}


def tokens(traces: dict[tuple[str, int], Trace]) -> dict[tuple[str, int], tuple[int, ...]]:
    return {k: tuple(i for s in t.segments for i in s.ids if s.kind != "probe") for k, t in traces.items()}


def test_greedy_tokens_equal_those_of_generate(pebble: TorchModel) -> None:
    questions = problems(4)
    ours = tokens(
        run(pebble, list(jobs_for(questions, 1)), Settings(max_tokens=120, answer_reserve=0, loop_stop=False))
    )
    for problem in questions:
        prompt = torch.tensor([pebble.encode_prompt(pebble.render(problem.messages))])
        theirs = pebble.network.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=120, do_sample=False
        )
        assert ours[problem.id, 0] == tuple(theirs[0, prompt.shape[1] :].tolist())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_float64_neither_batch_size_nor_order_changes_a_token(pebble64: TorchModel, temperature: float) -> None:
    jobs = list(jobs_for(problems(10), 2))
    results = [
        tokens(run(pebble64, order, Settings(max_tokens=160, temperature=temperature, batch_size=size)))
        for size, order in ((1, jobs), (7, jobs), (32, jobs[::-1]))
    ]
    assert results[0] == results[1] == results[2]
    if temperature:
        assert results[0][jobs[0].problem.id, 0] != results[0][jobs[0].problem.id, 1]


def test_in_float32_traces_part_only_at_numerical_near_ties(pebble: TorchModel) -> None:
    jobs = list(jobs_for(problems(120), 1))
    few = tokens(run(pebble, jobs, Settings(max_tokens=120, batch_size=7)))
    many = tokens(run(pebble, jobs, Settings(max_tokens=120, batch_size=32)))
    parted = 0
    for job in jobs:
        a, b = few[job.problem.id, 0], many[job.problem.id, 0]
        if a == b:
            continue
        parted += 1
        parting = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
        session = Session(pebble)
        session.add([[*pebble.encode_prompt(pebble.render(job.problem.messages)), *a[:parting]]])
        gap = session.logits[0, a[parting]] - session.logits[0, b[parting]]
        assert abs(float(gap)) < 1e-3, f"{job.problem.id} parts at token {parting}, which is no tie"
    assert parted <= 1, "more than 1% of the traces part"


def test_an_answer_never_comes_back_empty_because_thinking_ate_the_budget(toy: TorchModel) -> None:
    # the toy never closes its thinking by itself
    trace = run(toy, [Job(Problem.ask("1 + 1"))], Settings(max_tokens=60, loop_stop=False))["question", 0]
    assert trace.closed_by == "limit"
    assert trace.usage.generated == 60
    assert trace.usage.answer == 15
    assert trace.stop_reason == "max_tokens"


def test_thinking_budget_closes_and_counts(toy: TorchModel) -> None:
    settings = Settings(max_tokens=100, thinking_budget=20, loop_stop=False)
    trace = run(toy, [Job(Problem.ask("1 + 1"))], settings)["question", 0]
    assert trace.closed_by == "budget"
    assert trace.usage.thinking == 20
    kinds = [(s.kind, s.phase) for s in trace.segments]
    assert kinds[:2] == [("thinking", "thinking"), ("injected", "thinking")]
    assert trace.segments[1].text.endswith("</think>")


def test_a_thinking_budget_of_zero_thinks_nothing(toy: TorchModel) -> None:
    settings = Settings(max_tokens=40, thinking_budget=0, loop_stop=False)
    trace = run(toy, [Job(Problem.ask("1 + 1"))], settings)["question", 0]
    assert trace.closed_by == "budget"
    assert trace.usage.thinking == 0
    assert trace.usage.answer == 40 - trace.usage.injected


def test_a_repetition_loop_closes_the_thinking() -> None:
    model = make_toy()
    token = model.encode("7")[0]

    class Stuck(Controller):
        def adjust_logits(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
            forced = torch.full_like(logits, -1e9)
            forced[:, token] = 0.0
            return forced

    trace = run(model, [Job(Problem.ask("1 + 1"))], Settings(max_tokens=400), [Stuck()])["question", 0]
    assert trace.closed_by == "loop"
    assert trace.usage.thinking == 64
    assert trace.stop_reason == "loop"


def test_stop_strings_end_the_answer_but_not_the_thinking() -> None:
    model = make_toy()
    script = model.encode("a STOP b</think>c STOP d")

    class Scripted(Controller):
        def next_input(self, rows: Sequence[Row], chosen: list[int]) -> None:
            for i, row in enumerate(rows):
                chosen[i] = script[min(len(row.ids), len(script) - 1)]

    trace = run(model, [Job(Problem.ask("?"))], Settings(stop=("STOP",)), [Scripted()])["question", 0]
    assert trace.thinking_text == "a STOP b</think>"
    assert trace.answer_text == "c STOP"
    assert trace.stop_reason == "stop"
    assert trace.closed_by == "model"


def test_usage_adds_up_and_forced_tokens_are_marked(pebble: TorchModel) -> None:
    class Say(Controller):
        def begin(self, rows: Sequence[Row], batch: Batch) -> None:
            for row in rows:
                row.force("Let me be brief.\n")

    jobs = list(jobs_for(problems(3), 1))
    for trace in run(pebble, jobs, Settings(max_tokens=150), [Say()]).values():
        usage = trace.usage
        by_kind = {
            k: sum(len(s.ids) for s in trace.segments if s.kind == k) for k in ("thinking", "answer", "injected")
        }
        assert by_kind == {"thinking": usage.thinking, "answer": usage.answer, "injected": usage.injected}
        assert usage.forward_passes == usage.generated
        assert trace.segments[0].kind == "injected"
        assert trace.segments[0].text == "Let me be brief.\n"
        assert usage.total == usage.prompt + usage.generated
        assert usage.flops > 2 * pebble.parameters * usage.generated


def test_only_a_controllers_own_rows_are_steered(pebble64: TorchModel) -> None:
    class Short(Controller):
        def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
            for row in rows:
                row.stop("stop")

        def adjust_logits(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(logits)

    short = Short()
    jobs = list(jobs_for(problems(6), 1))
    settings = Settings(max_tokens=60, batch_size=6)
    alone = tokens(run(pebble64, jobs, settings))
    steered = {jobs[1].problem.id, jobs[4].problem.id}

    def plan(job: Job) -> Plan:
        return Plan(pebble64.render(job.problem.messages), [short] if job.problem.id in steered else [])

    mixed = tokens({(t.problem_id, 0): t for t in decode(pebble64, jobs, settings, plan, "test")})
    for job in jobs:
        if job.problem.id in steered:
            assert mixed[job.problem.id, 0] == (0,)
        else:
            assert mixed[job.problem.id, 0] == alone[job.problem.id, 0]


def test_jobs_are_read_lazily(toy: TorchModel) -> None:
    read = 0

    def endless() -> Iterator[Job]:
        nonlocal read
        while True:
            read += 1
            yield Job(Problem.ask(f"{read} + 1", id=str(read)))

    traces = decode(
        toy,
        endless(),
        Settings(max_tokens=10, batch_size=4),
        lambda job: Plan(toy.render(job.problem.messages)),
        "test",
    )
    for _ in range(8):
        next(traces)
    assert read <= 16


def test_a_prompt_beyond_the_context_names_its_problem(toy: TorchModel) -> None:
    with pytest.raises(ContextOverflow, match="'long'"):
        run(toy, [Job(Problem.ask("7 " * 600, id="long"))], Settings())


def test_the_context_is_a_limit(toy: TorchModel) -> None:
    job = Job(Problem.ask("7 " * 200))
    trace = run(toy, [job], Settings(max_tokens=1000, loop_stop=False))["question", 0]
    assert trace.stop_reason == "context"
    assert trace.usage.prompt + trace.usage.generated == 512
    assert trace.closed_by == "limit"


def test_think_markers_in_a_question_do_not_open_a_block() -> None:
    model = make_toy()
    chat_template = model.tokenizer.chat_template
    try:
        model.tokenizer.chat_template = "<|user|>{{ messages[0].content }}<|end|>\n<|assistant|>"
        question = "What does <think> mean?"
        trace = run(model, [Job(Problem.ask(question))], Settings(max_tokens=20))["question", 0]
        assert {s.phase for s in trace.segments} == {"answer"}
        assert trace.closed_by == "prompt"
    finally:
        model.tokenizer.chat_template = chat_template
