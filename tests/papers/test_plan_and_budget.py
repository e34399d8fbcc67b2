"""Plan-and-Budget: readers of planners' replies, what each mode tells the model, and runs on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.decoding.flow import Call
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.base import Stage
from thrifty.methods.control.plan_and_budget import (
    CREDITS_PROMPT,
    LEVEL_PROMPT,
    MODES,
    STEPS_PROMPT,
    PlanAndBudget,
    SubQuestion,
    label_level,
    located,
    numbered,
    parse_credits,
    parse_level,
    parse_steps,
)
from thrifty.models import load_model
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem, Trace

STEPS = [SubQuestion("Read the sum", "look"), SubQuestion("Add", "carry"), SubQuestion("Check", "again")]
PLAN = "\n".join(f"{k}. {text}\nHint: {hint}" for k, (text, hint) in enumerate(STEPS, 1))
CREDITS = 'Here: {"subquestions": [{"level": 2, "credit": 50}, {"credit": 30}, {"credit": 20}]} as asked.'
QUESTION = "What is 17 + 25?"

# -- readers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "level"),
    [("3", 3), ("Level: 4.", 4), ("**2**", 2), ("5/5", 5), ("17", None), ("2.5", None), ("0", None), ("hard", None)],
)
def test_levels_are_read(text: str, level: int | None) -> None:
    assert parse_level(text) == level


@pytest.mark.parametrize(
    ("metadata", "level"),
    [
        ({"level": "Level 4"}, 4),
        ({"level": 2}, 2),
        ({"difficulty": "easy"}, 1),
        ({"difficulty": "Medium"}, 3),
        ({"level": "hard"}, 5),
        ({"level": 7}, None),
        ({"difficulty": {"min_terms": 3}}, None),
        ({}, None),
    ],
)
def test_labels_are_read(metadata: dict[str, Any], level: int | None) -> None:
    assert label_level(metadata) == level


def test_steps_are_read() -> None:
    assert parse_steps(f"Sure!\n\n{PLAN}\n\nGood luck.") == STEPS
    assert parse_steps("**1) Add them**\n\n   **Hint:** carry") == [SubQuestion("Add them", "carry")]
    assert parse_steps("1. Add\nhint:") == [SubQuestion("Add", "None")]
    assert parse_steps("1. Add\n2. Check") is None
    assert parse_steps("Just add them.") is None
    many = "\n".join(f"{k}. step\nHint: h" for k in range(1, 9))
    assert len(parse_steps(many) or []) == 5


def test_credits_are_read_from_json_amid_other_text() -> None:
    assert parse_credits(CREDITS, 3) == [50, 30, 20]
    assert parse_credits('[{"credit": 60}, {"credit": 40}] {"credit": 1}', 2) == [60, 40]
    assert parse_credits('{"credits": [60, 40]}', 2) == [60, 40]
    assert parse_credits('{"1": 60, "2": 40}', 2) == [60, 40]
    assert parse_credits('{not json} [] {"credits": [60, 40]}', 2) == [60, 40]
    assert parse_credits('{"subquestions": [{"credit": 33.5}, {"credit": 33.5}]}', 2) == [33.5, 33.5]


@pytest.mark.parametrize(
    "text",
    [
        "no idea",
        '{"credits": [50, 30, 20]}',  # one too many
        '{"credits": [50]}',
        '{"credits": [150, -50]}',
        '{"credits": [0, 0]}',
        '{"credits": [true, false]}',
        '{"credits": ["50", 50]}',
        '{"credits": [NaN, 50]}',
        '{"credits": [1e999, 50]}',
        '{"subquestions": [{"reason": "x"}, {"credit": 5}]}',
        '{"credits": [50, 50',
        "[" * 5000,
    ],
)
def test_unusable_credits_are_none(text: str) -> None:
    assert parse_credits(text, 2) is None


@given(st.text(alphabet='0123456789.):*#-\n {}[]",HhintCred', max_size=200), st.integers(1, 5))
def test_readers_take_any_text(text: str, count: int) -> None:
    level, steps, credits, parts = (
        parse_level(text),
        parse_steps(text),
        parse_credits(text, count),
        located(text, count),
    )
    assert level is None or 1 <= level <= 5
    assert steps is None or (1 <= len(steps) <= 5 and all(step.text and step.hint for step in steps))
    assert credits is None or (len(credits) == count and min(credits) >= 0 and sum(credits) > 0)
    assert parts is None or (len(parts) == count and "".join(parts) == text[text.index(parts[0]) :])


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), st.text(alphabet="ab {[}", max_size=9))
def test_what_is_asked_for_is_read(credits: list[int], around: str) -> None:
    written = json.dumps({"subquestions": [{"reason": "r", "level": 1, "credit": c} for c in credits]})
    assert parse_credits(f"{around}\n{written}\n{around}", len(credits)) == credits
    steps = [SubQuestion(f"step {c}", f"hint {c}") for c in credits]
    listed = "\n".join(f"{k}. {s.text}\nHint: {s.hint}" for k, s in enumerate(steps, 1))
    assert parse_steps(f"{around}\n{listed}\n{around}") == steps


def test_parts_of_a_response_are_told_apart() -> None:
    text = "So.\n1. It is 17 and 25.\nStep 2: 42, 1.5 no.\n**3.** Right."
    assert located(text, 3) == ["1. It is 17 and 25.\n", "Step 2: 42, 1.5 no.\n", "**3.** Right."]
    assert located(text, 4) is None
    assert located("2. a\n1. b", 2) is None
    assert located("1.5 is not a part", 1) is None


# -- one problem, step by step ---------------------------------------------------------------------------------


def said(path: Path, text: str) -> Row:
    """Return a finished row that answers with a text."""
    path.write_text(json.dumps({"question": "?", "response": text}) + "\n")
    model = load_model(f"replay:{path}")
    assert isinstance(model, TorchModel)
    (row,) = decode_rows(model, [(Job(Problem.ask("?")), Plan(model.render([{"content": "?"}])))], Settings())
    return row


@pytest.fixture
def play(tmp_path: Path, pebble: TorchModel) -> Callable[..., tuple[list[Call], Trace]]:
    """Play the flow of one problem with given replies of the planner; return the calls and the trace."""

    def run(replies: Sequence[str], metadata: dict[str, Any] | None = None, **options: Any) -> tuple[list[Call], Trace]:
        method = PlanAndBudget(**options)
        stage = Stage(pebble, Settings(max_tokens=100), method.spec)
        flow = method.flow(stage, Job(replace(Problem.ask(QUESTION), metadata=metadata or {})))
        calls = list(next(flow))
        texts = [*replies, "</think>\\boxed{42}"]
        try:
            for text in texts:
                calls += flow.send([said(tmp_path / "said.jsonl", text)])
        except StopIteration as finished:
            assert len(calls) == len(texts)
            return calls, finished.value
        raise AssertionError("the flow wants more")

    return run


def exam(*limits: str, whole: str = "") -> str:
    """Return the exam of the three steps, each followed by a line of its own if there is any."""
    steps = "\n".join(
        f"{k}. {step.text} Hint: {step.hint}" + (f"\n{limit}" if limit else "")
        for k, (step, limit) in enumerate(zip(STEPS, limits or ("",) * 3, strict=True), 1)
    )
    return (
        f"You sit an exam.\n\nProblem (100 points): {QUESTION}\nReference: None.\nLevel: 4 of 5\n\n"
        f"Settle these sub-questions in turn:\n{steps}\n\nOther methods are allowed.{whole} "
        "Put the final answer in \\boxed{}."
    )


def words(*parts: int) -> list[str]:
    return [f"Keep the thinking short and settle this part within {b} words." for b in parts]


@pytest.mark.parametrize(
    ("options", "replies", "prompt"),
    [
        ({"mode": "vanilla"}, [], QUESTION),
        ({"mode": "planned"}, ["4", PLAN], exam()),
        ({"mode": "global_budget"}, ["4"], f"{QUESTION}\n\nUse fewer than 450 tokens."),
        ({"mode": "planned_global"}, ["4", PLAN], exam(whole=" Use fewer than 450 tokens.")),
        ({"mode": "planned_local_uniform"}, ["4", PLAN], exam(*words(150, 150, 150))),
        ({"schedule": "constant"}, ["4", PLAN, CREDITS], exam(*words(225, 135, 90))),
        ({"schedule": "linear"}, ["4", PLAN, CREDITS], exam(*words(294, 117, 39))),
        ({}, ["4", PLAN, CREDITS], exam(*words(344, 91, 15))),
        ({"schedule": "exponential"}, ["4", PLAN, CREDITS], exam(*words(242, 130, 78))),
        ({"schedule": "cosine"}, ["4", PLAN, CREDITS], exam(*words(330, 108, 12))),
        ({"at_least": 20}, ["4", PLAN, CREDITS], exam(*words(339, 91, 20))),
    ],
)
def test_what_each_mode_tells_the_model(
    options: dict[str, Any], replies: list[str], prompt: str, play: Any, pebble: TorchModel
) -> None:
    calls, trace = play(replies, **options)
    asked = [
        LEVEL_PROMPT.format(question=QUESTION),
        STEPS_PROMPT.format(question=QUESTION, level=4),
        CREDITS_PROMPT.format(question=QUESTION, steps=numbered(STEPS)),
    ]
    rendered = [pebble.render([{"role": "user", "content": text}]) for text in (*asked[: len(replies)], prompt)]
    assert [call.prompt for call in calls] == rendered
    assert [call.stream for call in calls] == [*range(1, len(calls)), 0]
    assert trace.answer == "42"
    told = trace.events["plan-and-budget"]
    assert told["mode"] == options.get("mode", "planned_local_weighted")
    assert told.get("fallbacks", []) == []
    if replies:
        assert (told["level"], told["level_from"], told["budget"]) == (4, "judged", 450)
        assert told["planner_tokens"] == trace.usage.probe > 0


def test_the_planner_is_asked_at_its_own_temperature_and_without_thinking(play: Any) -> None:
    calls, _ = play(["4", PLAN, CREDITS])
    for call in calls[:-1]:
        settings = call.settings
        assert settings is not None
        assert (settings.temperature, settings.top_p, settings.max_tokens) == (0.1, 0.9, 512)
        assert call.prefix == "</think>\n\n"
        assert not call.controllers
    assert calls[-1].prefix == ""


def test_malformed_replies_are_asked_for_again_up_to_the_limit(play: Any) -> None:
    calls, trace = play(["4", "Add.", "Just add.", PLAN, "{}", CREDITS])
    assert len(calls) == 7
    assert trace.events["plan-and-budget"]["fallbacks"] == []
    calls, trace = play(["4", *(f"no plan {i}" for i in range(3))], retries=2)
    told = trace.events["plan-and-budget"]
    assert (told["fallbacks"], told["steps"]) == (["steps"], ["Directly solve the problem Hint: None"])
    assert told["parts"] == [450]  # a single step gets all, and needs no credits
    assert len(calls) == 5
    calls, trace = play(["4", PLAN, "?", "?"])  # the same again ends the retries
    told = trace.events["plan-and-budget"]
    assert told["fallbacks"] == ["credits"]
    assert told["credits"] == [1, 1, 1]
    assert sum(told["parts"]) == 450
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("options", "metadata", "replies", "found"),
    [
        ({"level": 2}, {"level": 4}, [], (2, "fixed", 250)),
        ({}, {"level": "Level 3"}, [], (3, "label", 350)),
        ({"levels": "label"}, {"difficulty": "easy"}, [], (1, "label", 200)),
        ({"levels": "label"}, {}, [], (5, "default", 600)),
        ({"levels": "judged"}, {"level": 1}, ["4"], (4, "judged", 450)),
        ({}, {}, ["very hard"], (5, "default", 600)),
        ({"budgets": (1, 2, 3, 4, 9)}, {}, ["?"], (5, "default", 9)),
    ],
)
def test_where_the_level_is_from(
    options: dict[str, Any], metadata: dict[str, Any], replies: list[str], found: tuple[int, str, int], play: Any
) -> None:
    _, trace = play(replies, metadata, mode="global_budget", **options)
    told = trace.events["plan-and-budget"]
    assert (told["level"], told["level_from"], told["budget"]) == found


def test_compliance_is_measured_where_the_parts_can_be_told_apart(
    play: Any, tmp_path: Path, pebble: TorchModel
) -> None:
    written = ["1. It is 17 and 25.\n", "2. It is 42.\n", "3. Yes.\n"]
    method = PlanAndBudget(schedule="constant", level=4)
    flow = method.flow(Stage(pebble, Settings(), method.spec), Job(Problem.ask(QUESTION)))
    next(flow)
    flow.send([said(tmp_path / "a", PLAN)])
    flow.send([said(tmp_path / "b", CREDITS)])
    with pytest.raises(StopIteration) as finished:
        flow.send([said(tmp_path / "c", f"<think>\n{''.join(written)}</think>\n\n\\boxed{{42}}")])
    compliance = finished.value.value.events["plan-and-budget"]["compliance"]
    last = written[2] + "</think>"
    spent = [len(pebble.encode(text)) for text in (*written[:2], last)]
    assert compliance == [round(n / b, 2) for n, b in zip(spent, (225, 135, 90), strict=True)]
    _, trace = play(["4", PLAN, CREDITS])
    assert "compliance" not in trace.events["plan-and-budget"]


# -- whole runs ------------------------------------------------------------------------------------------------


def solve(model: TorchModel, spec: str, count: int = 4, **more: float) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 120, **more})  # type: ignore[arg-type]
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[tuple[int, ...]]]:
    return {k: [s.ids for s in t.segments if s.kind not in ("probe", "helper")] for k, t in traces.items()}


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_vanilla_mode_is_vanilla(temperature: float, pebble: TorchModel) -> None:
    none = solve(pebble, "plan-and-budget(mode=vanilla)", temperature=temperature)
    assert ids(none) == ids(solve(pebble, "vanilla", temperature=temperature))
    assert all(t.usage.probe == 0 for t in none.values())


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_runs_on_the_embedded_model(mode: str, pebble: TorchModel) -> None:
    for trace in solve(pebble, f"plan-and-budget(mode={mode},retries=1,planner_tokens=40)", count=2).values():
        told = trace.events["plan-and-budget"]
        assert trace.answer_text.strip()
        if mode == "vanilla":
            continue
        assert told["planner_tokens"] == trace.usage.probe > 0
        assert trace.usage.total == trace.usage.prompt + trace.usage.generated + trace.usage.probe
        assert (sum(told["parts"]) == told["budget"]) == mode.startswith("planned_local")
        assert "budget" not in trace.events  # which would say that it is enforced


def test_a_helper_plans(tmp_path: Path, pebble: TorchModel) -> None:
    problem = Problem.ask(QUESTION)
    prompts = {
        LEVEL_PROMPT.format(question=QUESTION): "4",
        STEPS_PROMPT.format(question=QUESTION, level=4): PLAN,
        CREDITS_PROMPT.format(question=QUESTION, steps=numbered(STEPS)): CREDITS,
    }
    path = tmp_path / "planner.jsonl"
    recordings = [json.dumps({"question": q, "response": r}) + "\n" for q, r in prompts.items()]
    path.write_text("".join(recordings * 4))  # one for each random stream
    method = get_method(f"plan-and-budget(planner='replay:{path}')+cap(budget=30)")
    (trace,) = method.solve(pebble, [Job(problem)], Settings(max_tokens=100))
    told = trace.events["plan-and-budget"]
    assert (told["level"], told["parts"], told["credits"]) == (4, [344, 91, 15], [50, 30, 20])
    assert told["planner_tokens"] == trace.usage.helper > 0
    assert trace.usage.probe == 0
    assert [s.text for s in trace.segments if s.kind == "helper"] == ["4", PLAN, CREDITS]
    assert trace.usage.prompt == len(
        pebble.encode(pebble.render([{"role": "user", "content": exam(*words(344, 91, 15))}]))
    )
    assert trace.closed_by == "cap"


def test_results_do_not_depend_on_the_batch(pebble64: TorchModel) -> None:
    spec = "plan-and-budget(retries=1,planner_tokens=30)"
    results = [ids(solve(pebble64, spec, count=3, batch_size=size, temperature=0.8, max_tokens=60)) for size in (1, 7)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("mode=local", "unknown mode"),
        ("schedule=square", "unknown schedule"),
        ("levels=none", "unknown levels"),
        ("budgets=(1,2,3)", "five whole numbers"),
        ("budgets=(1,2,3,4,0)", "five whole numbers"),
        ("level=6", "from 1 to 5"),
        ("retries=-1", "at least 0"),
        ("planner_tokens=0", "at least 1"),
    ],
)
def test_mistakes_get_one_line(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message) as mistake:
        get_method(f"plan-and-budget({options})")
    assert "\n" not in str(mistake.value)


def test_a_planner_that_is_not_there_is_found_before_any_work(pebble: TorchModel) -> None:
    with pytest.raises(ThriftyError, match="no model 'nowhere'"):
        get_method("plan-and-budget(planner=nowhere)").check(pebble)
