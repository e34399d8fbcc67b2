"""ARM: formats by tag and by prompt, programs that really run, and a vote of the cheap formats."""

from __future__ import annotations

import pytest

from thrifty.catalogue import Need
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.base import Stage
from thrifty.methods.control.arm import ARM, CHEAP, consensus, program_of, stated_answer
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.formats import FORMAT_PROMPTS, FORMAT_TAGS, in_format
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.answers import extract_answer
from thrifty.traces.think import THINK_FORMATS
from thrifty.traces.trace import Trace

PROBLEMS = {problem.id: problem for problem in load_task("mix").problems(limit=6, seed=5)}
BOX = "</think>\n\n**Final Answer:** \\boxed{{{}}}"
SUM = "</think>\n\n```python\nfor i in range(3):\n    print(i + 2)\n```"


def solve(model: TorchModel, spec: str, count: int = 4, **values: float) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 60, "loop_stop": False, **values})  # type: ignore[arg-type]  # plain numbers
    return {
        t.problem_id: t for t in get_method(spec).solve(model, jobs_for(list(PROBLEMS.values())[:count], 1), settings)
    }


def answer_with(model: TorchModel, spec: str, *replies: tuple[str, ...]) -> Trace:
    """Play a flow whose calls are answered by given texts; what it asks for must be as many as there are."""
    job = Job(next(iter(PROBLEMS.values())))
    method = get_method(spec).parts[0]
    assert isinstance(method, ARM)
    flow = method.flow(Stage(model, Settings(), spec), job)
    calls = next(flow)
    try:
        for texts in replies:
            assert len(calls) == len(texts)
            calls = flow.send([row_with(model, job, text) for text in texts])
    except StopIteration as finished:
        trace: Trace = finished.value
        return trace
    raise AssertionError("the flow asks for more")


def row_with(model: TorchModel, job: Job, text: str) -> Row:
    """Return a real row whose response begins with a text, and has one token more."""
    plan = Plan(model.render(job.problem.messages), prefix=text, settings=Settings(max_tokens=1))
    return next(decode_rows(model, [(job, plan)], Settings()))


def test_consensus_of_the_card() -> None:
    assert consensus(["4", "4", "4.0"])
    assert not consensus(["4", "4", None])
    assert not consensus(["4", "5", "4"])
    assert not consensus([None, None, None])
    assert not consensus([])


def test_three_equal_answers_need_no_long_call(toy: TorchModel) -> None:
    trace = answer_with(toy, "arm(mode=consensus)", (BOX.format(4), BOX.format("4.0"), SUM))
    assert trace.events["arm"] == {
        "mode": "consensus",
        "format": "direct",
        "answers": {"direct": "4", "short": "4.0", "code": "4"},
        "programs": {"ok": 1},
    }
    assert trace.answer == "4"


@pytest.mark.parametrize("third", [BOX.format(5), "</think>\n\nI do not know"])
def test_a_different_or_missing_answer_needs_the_long_call(toy: TorchModel, third: str) -> None:
    trace = answer_with(toy, "arm(mode=consensus)", (BOX.format(4), BOX.format(4), third), (BOX.format(6),))
    assert trace.events["arm"]["format"] == "long"
    assert trace.answer == "6"
    assert len(trace.events["arm"]["answers"]) == 4
    assert sum(s.kind == "probe" for s in trace.segments) == 3


def test_a_program_is_run_and_its_output_stands_under_the_reply(toy: TorchModel) -> None:
    trace = answer_with(toy, "arm(mode=code)", (SUM,))
    assert trace.answer == "4"
    assert trace.events["arm"]["programs"] == {"ok": 1}
    assert extract_answer(trace.answer_text) == "4"  # what a task finds there
    assert sum(len(s.ids) for s in trace.segments) == trace.usage.generated  # no model read or wrote it
    assert Trace.from_json(trace.to_json()) == trace


def test_an_output_of_words_or_with_braces_is_found_too(toy: TorchModel) -> None:
    for printed in ("Zoey is a knight, and Leo is a knave", "['-12', '3']", "{1, 2}"):
        trace = answer_with(toy, "arm(mode=code)", (f"</think>\n\n```python\nprint({printed!r})\n```",))
        assert trace.answer == extract_answer(trace.answer_text) == printed


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("print(7", "error"),
        ("print(7)\nraise SystemExit(3)", "error"),
        ("x = 7", "no output"),
        ("print('7' * 400)", "no output"),
        ("while True: pass", "timeout"),
    ],
)
def test_a_program_that_fails_is_counted_and_the_stated_answer_stands(
    toy: TorchModel, program: str, status: str
) -> None:
    reply = f"</think>\n\n```python\n{program}\n```\nThe answer is 12."
    trace = answer_with(toy, "arm(mode=code,seconds=1)", (reply,))
    assert trace.events["arm"]["programs"] == {status: 1}
    assert trace.answer == "12"


def test_not_run_the_emulated_answer_counts_as_in_the_paper(toy: TorchModel) -> None:
    reply = "</think>\n\n<CODE>\nprint(1 + 1)\n</CODE>\n<OUTPUT>\n3\n</OUTPUT>\n<ANSWER>\n3\n</ANSWER>"
    assert answer_with(toy, "arm(mode=code,run_code=false)", (reply,)).answer == "3"
    assert answer_with(toy, "arm(mode=code)", (reply,)).answer == "2"


def test_only_the_code_format_is_run(toy: TorchModel) -> None:
    for mode in ("adaptive", "short"):
        trace = answer_with(toy, f"arm(mode={mode})", (SUM + "\n\\boxed{9}",))
        assert trace.answer == "9"
        assert not trace.events["arm"]["programs"]


def test_programs_and_stated_answers_are_told_apart() -> None:
    assert program_of("a\n```python\nx = 1\n```\nb\n```\ny = 2\n```") == "y = 2\n"
    assert program_of("<CODE>\nx = 1\n</CODE> <OUTPUT>1</OUTPUT>") == "\nx = 1\n"
    assert program_of("<CODE>```python\nx = 1\n```</CODE>") == "x = 1\n"
    assert program_of("```python\nx = 1") is None  # cut off
    assert program_of("no program") is None
    assert stated_answer("<COT>2 + 2</COT><ANSWER>(B)</ANSWER>") == "(B)"
    assert stated_answer("<ANSWER> </ANSWER>") is None
    assert stated_answer("```python\nprint(12)\n```", "code") is None
    assert stated_answer("<CODE>print(12)", "code") is None


def test_adaptive_is_plain_sampling_and_tells_the_format_chosen(toy: TorchModel) -> None:
    for temperature in (0.0, 0.8):
        plain, adaptive = (solve(toy, spec, temperature=temperature) for spec in ("vanilla", "arm"))
        assert {k: t.segments for k, t in plain.items()} == {k: t.segments for k, t in adaptive.items()}
        assert {t.events["arm"]["format"] for t in adaptive.values()} == {"unknown"}
    plain_model = TorchModel(toy.network, toy.tokenizer, "plain", THINK_FORMATS["none"])
    trace = answer_with(plain_model, "arm", ("<COT>\n2 + 2\n</COT>\n<ANSWER>\n4\n</ANSWER>",))
    assert trace.events["arm"]["format"] == "short"
    assert trace.answer == "4"


@pytest.mark.parametrize("format", FORMAT_TAGS)
def test_a_format_is_asked_for_by_its_tag_or_its_prompt(toy: TorchModel, format: str) -> None:
    plain = TorchModel(toy.network, toy.tokenizer, "plain", THINK_FORMATS["none"])
    assert ARM().tagged(plain)
    assert not ARM().tagged(toy)
    for trace in solve(plain, f"arm(mode={format})", 2).values():
        assert trace.text.startswith(f"{FORMAT_TAGS[format]}\n")
        assert trace.usage.injected == len(toy.encode(f"{FORMAT_TAGS[format]}\n"))
        assert trace.events["arm"]["format"] == format
    for key, trace in solve(toy, f"arm(mode={format})", 2).items():
        prompt = toy.render(in_format(PROBLEMS[key].messages, format))
        assert FORMAT_PROMPTS[format] in prompt
        assert trace.usage.prompt == len(toy.encode_prompt(prompt))


def test_end_to_end_the_long_format_is_called_only_without_agreement(pebble: TorchModel) -> None:
    for key, trace in solve(pebble, "arm(mode=consensus)", 4, max_tokens=300).items():
        events = trace.events["arm"]
        agreed = consensus([events["answers"][format] for format in CHEAP])
        assert list(events["answers"]) == [*CHEAP, *([] if agreed else ["long"])]
        assert events["format"] == ("direct" if agreed else "long")
        assert trace.answer == events["answers"][events["format"]]
        prompts = [pebble.render(in_format(PROBLEMS[key].messages, format)) for format in events["answers"]]
        assert trace.usage.prompt == sum(len(pebble.encode_prompt(prompt)) for prompt in prompts)
        assert trace.usage.generated > sum(len(s.ids) for s in trace.segments)  # all calls are in the account


def test_it_does_not_depend_on_the_batch_and_composes(toy: TorchModel) -> None:
    runs = [solve(toy, "arm(mode=consensus)+cap(budget=9)", 5, batch_size=n, temperature=0.8) for n in (1, 7)]
    for key, trace in runs[0].items():
        assert trace.segments == runs[1][key].segments
        assert trace.closed_by in ("cap", "model")


def test_options_are_checked() -> None:
    for spec, message in (
        ("arm(mode=fast)", "mode is one of"),
        ("arm(formats=xml)", "formats is one of"),
        ("arm(seconds=0)", "seconds must be positive"),
    ):
        with pytest.raises(ThriftyError, match=message):
            get_method(spec)
    assert get_method("arm(mode=code)").needs == Need.SAMPLING
