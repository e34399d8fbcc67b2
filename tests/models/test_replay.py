"""The replay: recordings come back as they are, cuts follow the rule, and what nobody recorded is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import SHARED_DATA
from thrifty import bench
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.doctor import examine
from thrifty.errors import BadTask, MissingAccess, ThriftyError
from thrifty.methods import get_method
from thrifty.models import load_model
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.replay import PieceTexts, Recording, ReplayModel
from thrifty.tasks import load_task
from thrifty.traces.think import THINK_FORMATS, ThinkFormat
from thrifty.traces.trace import Problem, Trace

QUESTION = "What is 3 times 4?"
THOUGHT = "Three fours.\n\nSo the answer is 12.\nWait, 3 + 4 is 7.\nNo, so the answer is 13.\nHmm, the answer is 12.\n"
ANSWER = "Three times four is \\boxed{12}."
R1 = f"{THOUGHT}</think>\n\n{ANSWER}"
"""As R1 writes: the prompt had opened the block."""

FREE = Settings(max_tokens=100_000, answer_reserve=0, loop_stop=False)
"""Settings that cut nothing."""


def replay(*responses: str, think: ThinkFormat | None = None) -> ReplayModel:
    recordings = [Recording(QUESTION, response, sample) for sample, response in enumerate(responses)]
    return ReplayModel(recordings, "replay:here", think)


def play(model: ReplayModel, spec: str = "vanilla", settings: Settings = FREE) -> list[Trace]:
    jobs = jobs_for([Problem.ask(QUESTION, "12")], settings.samples)
    return sorted(get_method(spec).solve(model, jobs, settings), key=lambda trace: trace.sample)


def write(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("response", "format", "thinking", "closed_by"),
    [
        (R1, "think", f"{THOUGHT}</think>", "model"),
        (f"<think>\n{R1}", "think", f"<think>\n{THOUGHT}</think>", "model"),
        (f"<think>{THOUGHT}", "think", f"<think>{THOUGHT}", None),
        (f"[THINK]{THOUGHT}[/THINK]{ANSWER}", "mistral", f"[THINK]{THOUGHT}[/THINK]", "model"),
        (
            f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}",
            "harmony",
            f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>",
            "model",
        ),
        (ANSWER, "none", "", "prompt"),
    ],
)
def test_without_a_cut_a_recording_comes_back_as_it_is(
    response: str, format: str, thinking: str, closed_by: str | None
) -> None:
    model = replay(response)
    assert model.think is THINK_FORMATS[format]
    (trace,) = play(model)
    assert trace.text == response
    assert trace.thinking_text == thinking
    assert (trace.stop_reason, trace.closed_by) == ("eos", closed_by)
    assert trace.events == {"replayed": "whole"}
    assert trace.usage.injected == 0
    assert trace.usage.thinking == len(model.encode(thinking)) + (closed_by is None)  # an unclosed one ends within
    assert trace.answer == (None if closed_by is None else "12")


def test_markers_of_ones_own_can_be_named() -> None:
    format = ThinkFormat("own", "<a>", "</a>", "<a>\n", "</a>\n\n")
    (trace,) = play(replay(f"<a>{THOUGHT}</a>{ANSWER}", think=format))
    assert trace.thinking_text == f"<a>{THOUGHT}</a>"
    assert trace.answer_text == ANSWER


def test_a_response_without_markers_is_an_answer_where_the_model_opens_its_blocks_itself() -> None:
    explicit, implicit = f"<think>{R1}", R1
    assert [t.closed_by for t in play(replay(explicit, ANSWER), settings=FREE.with_(samples=2))] == ["model", "prompt"]
    assert [t.closed_by for t in play(replay(implicit, THOUGHT), settings=FREE.with_(samples=2))] == ["model", None]


@pytest.mark.skipif(not (SHARED_DATA / "traces_mip").exists(), reason="the real traces are not beside this checkout")
def test_real_traces_come_back_as_they_are() -> None:
    with (SHARED_DATA / "traces_mip" / "dev.jsonl").open() as file:
        records = [json.loads(line) for line in file]
    for name in ("DeepSeek-R1", "QwQ-32B"):
        recordings = [Recording(r["question"], r["trace"], i) for i, r in enumerate(records) if r["model"] == name][:25]
        model = ReplayModel(recordings, f"replay:{name}")
        problems = [Problem.ask(r.question, id=str(r.sample)) for r in recordings]
        texts = {t.problem_id: t.text for t in get_method("vanilla").solve(model, jobs_for(problems, 1), FREE)}
        assert texts == {str(r.sample): r.response for r in recordings}


def test_first_try_cuts_at_the_line_and_the_last_candidate_is_the_answer() -> None:
    lines = THOUGHT.splitlines(keepends=True)
    for tries, kept, candidate in ((1, 3, "12"), (2, 5, "13"), (3, 6, "12")):
        (trace,) = play(replay(R1), f"first-try(tries={tries})")
        if tries == 3:  # the cut falls where the recording ends its thinking: what was recorded is still what follows
            assert trace.text == R1
            assert trace.events["replayed"] == "whole"
        else:
            assert trace.text == "".join(lines[:kept]) + f"</think>\n\n\\boxed{{{candidate}}}"
            assert trace.events["replayed"] == "cut"
        assert trace.exit_reason == "first-try"
        assert trace.answer == candidate
    (trace,) = play(replay(R1), "first-try(tries=4)")
    assert (trace.text, trace.exit_reason) == (R1, "model")


@pytest.mark.parametrize("between", ["</think>", "\n</think>\n", "\n</think>\n\n", "</think>\n\n\n"])
@pytest.mark.parametrize("opener", ["", "<think>\n"])
def test_a_cap_plays_so_many_tokens_wherever_it_falls(between: str, opener: str) -> None:
    response = f"{opener}Let me see.\nThe answer is 7. No.{between}{ANSWER}"
    model = replay(response)
    thinking = model.encode(response.partition("</think>")[0])
    first = 1 + len(model.encode(opener))
    for budget in range(first, len(thinking) + 3):
        (trace,) = play(model, f"cap(budget={budget})")
        played = model.texts.text(thinking[:budget])
        assert trace.text.startswith(played)
        if trace.events["replayed"] == "whole":
            assert trace.text == response
            assert budget >= len(thinking) - 1
        else:
            stated = "\\boxed{7}" if "7" in played else ""
            newline = "" if played.endswith("\n") else "\n"
            assert trace.text == f"{played}{newline}</think>\n\n{stated}"
            assert trace.answer == ("7" if stated else None)


def test_budgets_of_the_run_and_of_s1_cut_as_the_cap_does() -> None:
    (capped,) = play(replay(R1), "cap(budget=20)")
    (forced,) = play(replay(R1), "s1(maximum=20)")
    (limited,) = play(replay(R1), settings=FREE.with_(thinking_budget=20))
    assert capped.text == forced.text == limited.text
    assert capped.events["replayed"] == "cut"
    assert [t.closed_by for t in (capped, forced, limited)] == ["cap", "s1", "budget"]


def test_the_limit_stops_a_response_within_its_recording() -> None:
    (trace,) = play(replay(R1), settings=FREE.with_(max_tokens=9))
    assert trace.text == "Three fours.\n\nSo the answer is"
    assert (trace.stop_reason, trace.closed_by, trace.events["replayed"]) == ("max_tokens", None, "stopped")


def test_the_loop_stop_ends_a_recorded_loop() -> None:
    model = replay("So the answer is 12.\n" + "Hmm, let me see.\n" * 60 + f"</think>{ANSWER}")
    (looped,), (stopped,) = play(model), play(model, settings=FREE.with_(loop_stop=True))
    assert looped.text == model.recordings[0].response
    assert stopped.exit_reason == "loop"
    assert stopped.answer == "12"
    assert stopped.usage.thinking < looped.usage.thinking / 3


def test_recordings_of_a_question_are_its_samples_and_no_more_can_be_asked_for() -> None:
    responses = [f"So {n}.</think>\\boxed{{{n}}}" for n in range(3)]
    model = replay(*responses)
    for batch_size in (1, 2, 16):
        traces = play(model, settings=FREE.with_(samples=3, batch_size=batch_size, temperature=0.9))
        assert [t.text for t in traces] == responses
    (later,) = get_method("vanilla").solve(model, [Job(Problem.ask(QUESTION), 2)], FREE)
    assert later.text == responses[2]
    with pytest.raises(ThriftyError, match="ask for 3 at the most"):
        play(model, settings=FREE.with_(samples=4))


def test_samples_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    records = [{"question": QUESTION, "response": f"{n}", "answer": "12", "sample": n} for n in (2, 0, 1)]
    model = load_model(f"replay:{write(tmp_path / 'r.jsonl', records)}")
    assert isinstance(model, ReplayModel)
    assert [t.text for t in play(model, settings=FREE.with_(samples=3))] == ["0", "1", "2"]


def test_bench_end_to_end(tmp_path: Path) -> None:
    records = []
    for n in range(6):
        first = n if n % 2 else n + 1  # every other first answer is wrong, and mended later
        thought = f"So the answer is {first}.\nLet me check that.\n" + "Hmm.\n" * 9 + f"So the answer is {n}.\n"
        response = f"{thought}</think>\n\n\\boxed{{{n}}}"
        records.append({"question": f"Which number is {n}?", "response": response, "answer": str(n), "model": "m"})
    name = f"replay:{write(tmp_path / 'recorded.jsonl', records)}"
    summary = bench(name, name, ["first-try"], out=tmp_path / "run", limit=None, max_tokens=4000)
    vanilla, cut = summary["methods"]["vanilla"], summary["methods"]["first-try"]
    assert (vanilla["accuracy"], cut["accuracy"]) == (1.0, 0.5)
    assert cut["exit_reasons"] == {"first-try": 6}
    assert cut["cap_spec"].startswith("cap(budget=")
    assert vanilla["first_correct_tokens_mean"] is not None
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    assert {json.loads(line)["events"]["replayed"] for line in lines} == {"whole", "cut"}
    again = bench(name, name, ["first-try"], out=tmp_path / "run", limit=None, max_tokens=4000)
    assert again == summary
    assert (tmp_path / "run" / "records.jsonl").read_text().splitlines() == lines
    verdicts = examine(name)["methods"]
    assert [verdicts[slug] for slug in ("vanilla", "cap", "first-try", "s1")] == ["runs"] * 4
    assert "only plays recordings back" in verdicts["cgrs"]


def test_a_task_with_the_same_questions_will_do(tmp_path: Path) -> None:
    task = load_task(str(write(tmp_path / "own.jsonl", [{"question": "What  is\n3 times 4?", "answer": "12"}])))
    (trace,) = get_method("vanilla").solve(replay(R1), jobs_for(task.problems(), 1), FREE)
    assert trace.text == R1
    with pytest.raises(ThriftyError, match="holds no recording of 'What is 5"):
        list(get_method("vanilla").solve(replay(R1), [Job(Problem.ask("What is 5 times 5?"))], FREE))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cgrs", "needs logits, kv"),
        ("no-think", "answers without thinking"),
        ("cap(budget=0)", "answers without thinking"),
        ("s1(minimum=9)", "writes into the thinking"),
        ("s1(closing='So, ')", "writes into the thinking"),
        ("first-try+s1(minimum=9)", "writes into the thinking"),
    ],
)
def test_methods_that_change_what_follows_are_refused_before_any_work(spec: str, says: str) -> None:
    with pytest.raises(ThriftyError, match="only plays recordings back") as refusal:
        get_method(spec).check(replay(R1))
    assert says in str(refusal.value)
    assert isinstance(refusal.value, MissingAccess) == (spec == "cgrs")


class _Write(Controller):
    def __init__(self, text: str, after: int) -> None:
        self.text, self.after = text, after

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if len(row.ids) == self.after:
                row.force(self.text)


@pytest.mark.parametrize("text", ["Wait", "\nWait", "\n\n", "</think>\n\nThe answer"])
@pytest.mark.parametrize("after", [2, 9, 30, 55])
def test_a_controller_that_writes_something_else_is_refused_while_it_runs(text: str, after: int) -> None:
    model = replay(R1)
    with pytest.raises(ThriftyError, match="only plays recordings back"):
        list(_steered(model, _Write(text, after)))


def test_a_controller_that_writes_what_was_recorded_changes_nothing() -> None:
    model = replay(R1)
    (trace,) = _steered(model, _Write(model.texts.text(model.encode(R1)[5:11]), 5))
    assert trace.text == R1
    assert trace.usage.injected == 6


def _steered(model: ReplayModel, controller: Controller) -> list[Trace]:
    job = Job(Problem.ask(QUESTION))
    return list(decode(model, [job], FREE, lambda job: Plan(model.render(job.problem.messages), [controller]), "own"))


def test_a_thinking_budget_of_zero_is_refused_when_it_falls_due() -> None:
    with pytest.raises(ThriftyError, match="closed before it begins"):
        play(replay(R1), settings=FREE.with_(thinking_budget=0))


def test_sessions_fork_rewind_and_drop_as_on_any_model() -> None:
    responses = ["one two three four", "five six seven eight nine"]
    model = replay(*responses)
    ids = [model.encode(response) for response in responses]
    session = Session(model)
    session.add([model.encode_prompt(QUESTION, sample) for sample in (0, 1)])
    session.append([ids[0][:2], ids[1][:3]])
    assert session.logits.argmax(-1).tolist() == [ids[0][2], ids[1][3]]
    assert torch.softmax(session.logits, -1).max(-1).values.tolist() == [1.0, 1.0]
    copy = session.fork([1, 0])
    copy.append([ids[1][3:], []])
    assert copy.logits.argmax(-1).tolist() == [*model.eos_ids, ids[0][2]]
    session.rewind(1, 2)
    session.append([[], ids[1][1:2]])
    assert session.logits.argmax(-1).tolist() == [ids[0][2], ids[1][2]]
    assert session.drop([0]) == [1]
    assert session.logits.argmax(-1).tolist() == [ids[1][2]]


GOOD = {"question": QUESTION, "response": R1, "answer": "12", "model": "m"}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ('{"response": "x"}', "question is missing"),
        ('{"question": "x", "response": 3}', "response is missing, empty or not text"),
        ('{"question": " ", "response": "x"}', "question is missing, empty"),
        ('{"question": "x", "response": "\\ud800"}', "half of a surrogate pair"),
        ('{"question": "x", "response": "x", "sample": "first", "model": "m"}', "sample is no whole number"),
        (json.dumps({**GOOD, "sample": 0}), "on line 1 already"),
        (json.dumps({**GOOD, "model": "other"}), "one file a model"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_bad_line_is_named(bad: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + bad + "\n")
    with pytest.raises(ThriftyError, match="line 3") as refusal:
        load_model(f"replay:{path}")
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ThriftyError, match="holds no recording"):
        load_model(f"replay:{tmp_path / 'empty.jsonl'}")
    with pytest.raises(ThriftyError, match="check the path"):
        load_model(f"replay:{tmp_path / 'none.jsonl'}")


def test_the_task_asks_each_question_once_and_wants_its_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [GOOD, GOOD, {**GOOD, "question": "And 2 times 2?", "answer": 4}])
    task = load_task(f"replay:{path}")
    assert [(p.question, p.answer) for p in task.problems()] == [(QUESTION, "12"), ("And 2 times 2?", "4")]
    assert task.name == f"replay:{path}"
    for field, value, says in (("answer", None, "no answer"), ("choices", ["1", "12"], "has choices")):
        with pytest.raises(BadTask, match=says):
            list(load_task(f"replay:{write(path, [{**GOOD, field: value}])}").problems())
    with pytest.raises(BadTask, match="no option"):
        load_task(f"replay:{path}(level=hard)")


@given(st.text(), st.text(), st.sampled_from(["", "<think>", "</think>", " \n </think>\n\n"]))
def test_any_text_comes_back_from_the_vocabulary(learnt: str, other: str, marker: str) -> None:
    texts = PieceTexts(("<think>", "</think>"))
    known = texts.learn(learnt + marker + other)
    assert texts.text(known) == learnt + marker + other
    assert all(texts.bytes_of(token).decode() for token in known)  # what was learnt is whole characters
    strange = texts.encode(other + marker + learnt + "\u2603 unheard of")
    assert texts.text(strange) == other + marker + learnt + "\u2603 unheard of"
    assert max([*known, *strange]) < len(texts)


def test_pieces_are_words_digits_signs_and_newlines() -> None:
    texts = PieceTexts(("<think>", "</think>"))
    text = " Two  words,\n\n  12*x</think>三角"
    pieces = [texts.bytes_of(token).decode() for token in texts.learn(text)]
    expected = [" Two", " ", " words", ",", "\n", "\n", "  ", "1", "2", "*", "x", "</think>", "三", "角"]
    assert pieces == expected
