"""ThoughtMani: the card's decline cases and ledger, thoughts of all kinds, and runs on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from thrifty.decoding.controller import Controller
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.base import Stage
from thrifty.methods.control.thoughtmani import GENERATOR_PROMPT, ThoughtMani, decline_reason
from thrifty.models import embedded_folder
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.formats import FORMAT_PROMPTS
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem, Trace

PLAIN, HARD = Problem.ask("What is 2 + 3?", id="plain"), Problem.ask("What is 4 * 6?", id="hard")
PROBLEMS = [p for p in load_task("mix").problems(limit=9, seed=5) if p.metadata["family"] in ("chain_sum", "gcd")] + [
    PLAIN,
    HARD,
]
OUTLINE = "1. Look at the numbers.\n2. Work from left to right."


def solve(
    model: TorchModel,
    spec: str,
    watch: Sequence[Controller] = (),
    problems: Sequence[Problem] = PROBLEMS,
    **more: float,
) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 240, **more})  # type: ignore[arg-type]
    traces = get_method(spec).solve(model, jobs_for(problems, 1), settings, watch)
    return {t.problem_id: t for t in traces}


def ids(traces: dict[str, Trace]) -> dict[str, list[tuple[int, ...]]]:
    return {k: [s.ids for s in t.segments if s.kind not in ("probe", "helper")] for k, t in traces.items()}


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A helper that outlines everything but the hard problem."""
    path: Path = tmp_path_factory.mktemp("helper") / "outlines.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "question": f"{GENERATOR_PROMPT}\n\n{p.question}",
                    "response": "I am not sure: <STOP>." if p.id == "hard" else f"{OUTLINE}\nThe answer is 5.",
                }
            )
            + "\n"
            for p in PROBLEMS
            for _ in range(2)  # a recording for each random stream: the outline is the second
        )
    )
    return f"helper='replay:{path}'"


@pytest.mark.parametrize(
    ("text", "tokens", "reason"),
    [
        ("<STOP>", 1, "stop"),
        (" <STOP>.", 2, "stop"),
        ("", 0, "empty"),
        (" \n", 1, "empty"),
        (None, 0, "empty"),
        ("a;b", 513, "long"),
        ("First add. <STOP> no more.", 9, "stop"),
        ("a;b", 512, None),
    ],
)
def test_decline_cases_of_the_card(text: str | None, tokens: int, reason: str | None) -> None:
    assert decline_reason(text, tokens, 512) == reason


def test_an_outline_is_all_the_thinking_and_a_decline_leaves_the_model_alone(helper: str, pebble64: TorchModel) -> None:
    found, plain = solve(pebble64, f"thoughtmani({helper})"), solve(pebble64, "vanilla")
    prefix = f"{OUTLINE}\n</think>\n\n"
    for key, trace in found.items():
        told = trace.events["thoughtmani"]
        if key == "hard":
            assert told["declined"] == "stop"
            assert ids(found)[key] == ids(plain)[key]
            assert trace.closed_by == plain[key].closed_by
        else:
            assert told["declined"] is None
            assert trace.text.startswith(prefix)
            assert (trace.thinking_text, trace.closed_by) == (f"{OUTLINE}\n</think>", "thoughtmani")
            assert trace.usage.thinking == 0
            assert trace.usage.injected == len(pebble64.encode(prefix))
            assert trace.answer_text.strip()
            assert told["own_tokens"] < plain[key].usage.generated
        assert trace.segments[-1].kind == "helper"


def test_the_account_holds_the_helpers_tokens_beside_the_models_own(helper: str, pebble: TorchModel) -> None:
    for trace in solve(pebble, f"thoughtmani({helper})").values():
        told, usage = trace.events["thoughtmani"], trace.usage
        assert told["own_tokens"] == usage.thinking + usage.answer
        assert 0 < told["helper_tokens"] < usage.helper  # which holds what the helper read, too
        assert usage.total == usage.prompt + usage.injected + told["own_tokens"] + usage.helper


def test_without_a_helper_the_model_outlines_as_a_probe(pebble: TorchModel) -> None:
    for trace in solve(pebble, "thoughtmani").values():
        assert trace.usage.probe > len(pebble.encode(GENERATOR_PROMPT))
        assert trace.usage.helper == 0
        assert trace.events["thoughtmani"]["helper_tokens"] > 0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_helper_that_always_declines_is_vanilla(temperature: float, pebble: TorchModel) -> None:
    none = solve(pebble, "thoughtmani(thought=none)", temperature=temperature)
    assert ids(none) == ids(solve(pebble, "vanilla", temperature=temperature))
    assert {t.events["thoughtmani"]["declined"] for t in none.values()} == {"always"}
    assert all(t.usage.probe == 0 for t in none.values())


def test_an_empty_thought_is_no_thinking(pebble64: TorchModel) -> None:
    empty = solve(pebble64, "thoughtmani(thought=empty)", temperature=0.7)
    assert {k: sum(v, ()) for k, v in ids(empty).items()} == {
        k: sum(v, ()) for k, v in ids(solve(pebble64, "no-think", temperature=0.7)).items()
    }
    assert all(t.events["thoughtmani"]["declined"] is None for t in empty.values())


def test_a_model_can_be_given_its_own_thought(pebble: TorchModel) -> None:
    few = [PROBLEMS[0], PLAIN]
    given = solve(pebble, "thoughtmani(thought=reasoning,keep_answers=true)", problems=few, max_tokens=900)
    plain = solve(pebble, "vanilla", problems=few, max_tokens=900)
    shorter = solve(pebble, "thoughtmani(thought=reasoning)", problems=few, max_tokens=900)
    for key, trace in given.items():
        assert trace.events["thoughtmani"]["declined"] is None
        assert trace.thinking_text.strip() == plain[key].thinking_text.strip()
        assert trace.events["thoughtmani"]["helper_tokens"] == plain[key].usage.thinking
        assert trace.usage.thinking == 0
        assert "answer is" in trace.thinking_text
        assert "answer is" not in shorter[key].thinking_text


def test_another_copy_of_the_model_counts_as_a_helper(pebble: TorchModel) -> None:
    few = [PROBLEMS[0], PLAIN]
    other = solve(pebble, f"thoughtmani(helper='{embedded_folder('pebble')}')", problems=few, max_tokens=80)
    own = solve(pebble, "thoughtmani", problems=few, max_tokens=80)
    assert ids(other) == ids(own)
    assert {k: t.usage.helper for k, t in other.items()} == {k: t.usage.probe for k, t in own.items()}


@pytest.mark.parametrize(
    ("options", "thinking"), [("on_decline=empty", "</think>"), ("on_decline=ignore", "I am not sure: .\n</think>")]
)
def test_what_is_done_about_a_decline(options: str, thinking: str, helper: str, pebble: TorchModel) -> None:
    trace = solve(pebble, f"thoughtmani({helper},{options})", problems=[HARD])["hard"]
    assert trace.thinking_text == thinking
    assert trace.closed_by == "thoughtmani"
    assert trace.events["thoughtmani"]["declined"] == ("stop" if "empty" in options else None)


def test_too_long_a_thought_is_not_used(helper: str, pebble: TorchModel) -> None:
    length = len(pebble.encode(f"{OUTLINE}\n</think>\n\n"))
    cases = {"cap=6": Settings().max_tokens, "cap=512": length + 5}
    for cap, max_tokens in cases.items():
        trace = solve(pebble, f"thoughtmani({helper},{cap})", problems=[PLAIN], max_tokens=max_tokens)["plain"]
        assert trace.events["thoughtmani"]["declined"] == "long"
        assert trace.usage.injected == 0 or trace.closed_by == "limit"
        assert trace.answer_text.strip()


class Scripted(Controller):
    """Write what stands in a script, behind what the method has put in."""

    def __init__(self, model: TorchModel, prefix: str, script: str) -> None:
        self.given, self.script = len(model.encode(prefix)), model.encode(script)

    def next_input(self, rows: Sequence[Row], tokens: list[int]) -> None:
        for i, row in enumerate(rows):
            tokens[i] = self.script[min(len(row.ids) - self.given, len(self.script) - 1)]


@pytest.mark.parametrize(
    ("script", "answer", "thinking"),
    [
        (
            "\\boxed{5}\n\n<think>\nWait.\n</think>\n\n\\boxed{7}<|end|>",
            "7",
            "</think>\n\n\\boxed{5}\n\n<think>\nWait.\n</think>",
        ),
        ("\\boxed{5}\n\n<think>\nWait.\n</think><|end|>", "5", "</think><think>\nWait.\n</think>"),
    ],
)
def test_the_answer_stands_behind_the_last_block(script: str, answer: str, thinking: str, pebble: TorchModel) -> None:
    prefix = "</think>\n\n"
    watch = [Scripted(pebble, prefix, script)]
    trace = solve(pebble, "thoughtmani(thought=empty)", watch, PROBLEMS[:1])[PROBLEMS[0].id]
    assert (trace.text, trace.answer) == (prefix + script.removesuffix("<|end|>"), answer)
    assert trace.thinking_text.strip() == thinking
    told = trace.events["thoughtmani"]
    assert (told["reopened"], trace.closed_by) == (1, "model")
    assert told["own_tokens"] == len(pebble.encode(script))
    assert told["own_paragraphs"] == script.count("\n\n") + 1


def test_it_composes_with_methods_that_steer(helper: str, pebble: TorchModel) -> None:
    found = solve(pebble, f"thoughtmani({helper})+cap(budget=20)")
    assert found["hard"].closed_by == "cap"
    assert found["plain"].closed_by == "thoughtmani"


def test_results_do_not_depend_on_the_batch(helper: str, pebble64: TorchModel) -> None:
    results = [
        ids(solve(pebble64, f"thoughtmani({helper})", batch_size=size, temperature=0.8, max_tokens=120))
        for size in (1, 7)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("thought=long", "unknown thought"),
        ("on_decline=retry", "unknown on_decline"),
        ("thought=reasoning,format=brief", "unknown format"),
        ("format=short", "thought=reasoning"),
        ("cap=0", "at least 1"),
    ],
)
def test_mistakes_get_one_line(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message) as mistake:
        get_method(f"thoughtmani({options})")
    assert "\n" not in str(mistake.value)


def test_a_helper_that_is_not_there_is_found_before_any_work(pebble: TorchModel) -> None:
    with pytest.raises(ThriftyError, match="no model 'nowhere'"):
        get_method("thoughtmani(helper=nowhere)").check(pebble)


def test_a_format_is_asked_of_the_helper(pebble: TorchModel) -> None:
    method = ThoughtMani(thought="reasoning", format="short")
    flow = method.flow(Stage(pebble, Settings(), method.spec), Job(PROBLEMS[0]))
    (call,) = next(flow)
    assert call.prompt.startswith(f"<|system|>{FORMAT_PROMPTS['short']}<|end|>")
    assert call.prompt.endswith(f"{PROBLEMS[0].question}<|end|>\n<|assistant|><think>\n")
