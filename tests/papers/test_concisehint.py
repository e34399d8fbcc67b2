"""ConciseHint: the card's worked numbers, where hints go and who sees them, and runs on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_toy
from thrifty.bench.statistics import thinking_tokens
from thrifty.decoding.controller import Controller
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.control.concisehint import ADAP, interval, position, user_turn
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem, Trace

QUESTION = Problem.ask("2 + 5?")
HINT = "-<|user|>make answer concise!<|end|>-"


def test_intervals_of_the_card() -> None:
    length, found = 0, []
    for _ in range(12):
        found.append((interval(length, 128, 0.2, 1024), length))
        length += found[-1][0]
    assert found == [
        (128, 0), (153, 128), (184, 281), (221, 465), (265, 686), (318, 951),
        (381, 1269), (458, 1650), (549, 2108), (659, 2657), (791, 3316), (949, 4107),
    ]  # fmt: skip
    assert [interval(n, 128, 0.2, 1024) for n in (4479, 4480, 9999)] == [1023, 1024, 1024]
    assert interval(9999, 16, 0.0, 1024) == 16


def test_positions_of_the_card() -> None:
    assert position("Ab, cd. Ef", 128) == 2
    assert position("Ab, cd. Ef", 640) == 6
    text = ", " * 500
    assert [position(text, tau) for tau in (0, 128, 640, 1024, 9999)] == [0, 0, 500, 800, 800]
    # a mark at the very end, or within a number, is none
    assert position("So it is 3.14, or 3,000.", 128) == 13
    assert position("So it is 3.14.", 128) is None
    assert position("", 128) is None


@given(st.text(alphabet="ab., é", max_size=40), st.integers(0, 2000))
def test_a_position_is_the_first_mark_from_the_start_on(text: str, tau: int) -> None:
    start = int(min(max(tau - 128, 0) / 1024, 0.8) * (len(text) - 1))
    found = position(text, tau)
    marks = [i for i in range(len(text)) if i >= start and text[i : i + 2] in (". ", ", ")]
    assert found == (marks[0] if marks else None)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, ("<|user|>", "<|end|>")),
        # the shape of Qwen's, with a system message of its own
        (
            "<|system|>\nHelp.<|end|>\n{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}",
            ("<|user|>\n", "<|end|>"),
        ),
        # the shape of DeepSeek's: a first token, and only the assistant's turn has an end
        (
            "<|pad|>{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|>"
            "{{ m.content }}<|end|>{% endif %}{% endfor %}",
            ("<|user|>", ""),
        ),
        ("", ("", "")),
    ],
)
def test_the_marks_of_a_user_turn_are_read_off_the_template(template: str | None, expected: tuple[str, str]) -> None:
    model = with_template(template)
    assert user_turn(model) == expected


def with_template(template: str | None) -> TorchModel:
    toy = make_toy()
    if template is not None:
        toy.tokenizer.chat_template = template
    return TorchModel(toy.network, toy.tokenizer, "toy")


@pytest.mark.parametrize("template", ["{{ raise_exception('one turn only') }}", "{{ messages[0].content }}<|end|>"])
def test_a_template_that_shows_no_later_turn_asks_for_the_whole_hint(template: str) -> None:
    model = with_template(template)
    with pytest.raises(ThriftyError, match="markers=false"):
        get_method("concisehint").parts[0].controllers(model)
    assert get_method("concisehint(markers=false)").parts[0].controllers(model)


class Scripted(Controller):
    """Make rows write some tokens, whatever they prefer, and the last of them again and again."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens

    def next_input(self, rows: Sequence[Row], chosen: list[int]) -> None:
        for i, row in enumerate(rows):
            written = row.state[self] = row.state.get(self, -1) + 1
            chosen[i] = self.tokens[min(written, len(self.tokens) - 1)]


def write(model: TorchModel, spec: str, text: str | Sequence[int], **values: int) -> Trace:
    """Return the trace of a response that is dictated up to its length."""
    tokens = model.encode(text) if isinstance(text, str) else list(text)
    settings = Settings(**{"max_tokens": 460, "answer_reserve": 0, "loop_stop": False, **values})  # type: ignore[arg-type]
    (trace,) = get_method(spec).solve(model, [Job(QUESTION)], settings, [Scripted(tokens)])
    return trace


def sayings(toy: TorchModel) -> list[int]:
    """Return tokens that hold a mark of either kind here and there, with its blank in one token and in two."""
    pieces = ["So", ", ", "it is", ",", " 7", " and é", ".", " Well", ". "]
    return [token for _ in range(60) for piece in pieces for token in toy.encode(piece)]


def authors_loop(
    model: TorchModel,
    write: Callable[[list[int], int], list[int]],
    prompt: list[int],
    alpha: int,
    rounds: int,
    paper: bool,
) -> list[int]:
    """Return the response after some rounds of the authors' loop, which prompts anew with all that it has.

    Args:
        write: gives the next tokens of a response.
        paper: whether lengths are those of the paper.
    """
    response: list[int] = []
    tau, length = alpha, 0
    for _ in range(rounds):
        chunk = write(response, tau)
        at = position(model.texts.text(chunk), tau)
        length += len(chunk)
        if at is not None:
            last = next(i for i in range(len(chunk)) if len(model.texts.text(chunk[: i + 1])) > at)
            before, text = model.texts.text(chunk[:last]), model.texts.text(chunk[: last + 1])
            mark, blank = text[len(before) : at + 1], text[at + 1 :]
            hint = [i for piece in (mark, HINT, blank) for i in model.encode(piece)]
            chunk = [*chunk[:last], *hint, *chunk[last + 1 :]]
        response += chunk
        tau = interval(length if paper else len(prompt) + len(response), alpha, 0.2, 1024)
    return response


@pytest.mark.parametrize("count", ["paper", "release"])
def test_hints_go_where_the_authors_put_them(toy: TorchModel, count: str) -> None:
    tokens = sayings(toy)
    trace = write(toy, f"concisehint(alpha=32,count={count})", tokens)
    given = iter(tokens)
    prompt = toy.encode_prompt(toy.render(QUESTION.messages))
    expected = authors_loop(
        toy,
        lambda _, tau: [next(given) for _ in range(tau)],
        prompt,
        32,
        len(trace.events["concisehint"]),
        count == "paper",
    )
    assert ids(trace)[: len(expected)] == expected
    taus = [tau for _, tau in trace.events["concisehint"]]
    assert len(taus) >= 4
    if count == "paper":
        assert taus == [32, 38, 46, 55, 66, 79][: len(taus)]
    else:
        assert taus[1] == interval(len(prompt) + 32 + len(toy.encode(HINT)) + 1, 32, 0.2, 1024)
    hints = [s for s in trace.segments if s.phase == "aside"]
    assert [(s.text, s.kind) for s in hints] == [(HINT, "injected")] * len(taus)
    assert trace.usage.injected == sum(len(s.ids) for s in hints)
    assert trace.thinking_text == toy.texts.text(tokens)[: len(trace.thinking_text)]


def test_the_interval_has_a_cap(toy: TorchModel) -> None:
    capped = write(toy, "concisehint(alpha=32,cap=40)", sayings(toy))
    assert {tau for _, tau in capped.events["concisehint"][1:]} == {40}


def test_a_chunk_without_a_place_gets_no_hint(toy: TorchModel) -> None:
    trace = write(toy, "concisehint(alpha=16)", "So it is 3.14 or 3,000 and that's it" * 40, max_tokens=120)
    assert trace.events["concisehint"] == []
    assert {s.phase for s in trace.segments} == {"thinking"} | {s.phase for s in trace.segments if s.kind == "answer"}


ANSWER = "So, 7.\n</think>\n\nIt is \\boxed{7, 8}, and 7, 8, that is, 7, and 8, and so on, is what it is, I say."


def test_hints_in_the_answer_are_seen_by_nobody(toy: TorchModel) -> None:
    tokens = [*toy.encode(ANSWER), 1]
    trace = write(toy, "concisehint(alpha=8,beta=0.0)", tokens)
    at = [i for i, s in enumerate(trace.segments) if s.phase == "aside"]
    assert len(at) >= 3
    assert any(trace.segments[i - 1].phase == trace.segments[i + 1].phase == "answer" for i in at)
    assert any("\\boxed{7," in s.text and not s.text.endswith("}") for s in trace.segments), "one is within the answer"
    assert trace.text != ANSWER
    assert trace.text.replace(HINT, "") == ANSWER
    assert trace.thinking_text + trace.answer_text == ANSWER
    assert (trace.answer, trace.closed_by, trace.stop_reason) == ("7, 8", "model", "eos")
    kept = write(toy, "concisehint(alpha=8,beta=0.0,after_thinking=false)", tokens)
    assert all(s.phase != "aside" or kept.segments[i + 1].phase == "thinking" for i, s in enumerate(kept.segments))
    assert kept.answer_text == trace.answer_text


def test_marks_of_thinking_in_a_hint_mean_nothing(toy: TorchModel) -> None:
    spec = "concisehint(alpha=16,markers=false,hint=' </think> \\\\boxed{9} ')"
    trace = write(toy, spec, sayings(toy), max_tokens=100)
    assert trace.events["concisehint"]
    assert trace.text.count("</think>") == len(trace.events["concisehint"])
    assert trace.closed_by is None
    assert trace.answer is None


def test_broken_characters_at_the_ends_of_a_chunk_stay_whole(toy: TorchModel) -> None:
    tokens = toy.encode("🜚, ") * 30
    trace = write(toy, "concisehint(alpha=14,beta=0.0)", tokens, max_tokens=110)
    assert len(trace.events["concisehint"]) >= 3
    assert trace.thinking_text.startswith("🜚, " * 6)


def test_hints_leave_the_room_that_an_answer_takes(pebble: TorchModel) -> None:
    traces = solve(pebble, "concisehint(alpha=4,beta=0.0)", 6, max_tokens=70).values()
    assert any(trace.events["concisehint"] for trace in traces)
    for trace in traces:
        assert trace.usage.generated <= 70
        assert len(trace.answer_text.strip()) > 10


def test_adap_asks_in_the_question(pebble: TorchModel) -> None:
    method = get_method("concisehint(adap=true,hint='')").parts[0]
    job = Job(Problem.ask("What is 2 + 5?"))
    assert method.prompt(pebble, job, pebble.render(job.problem.messages)) == pebble.render(
        Problem.ask(f"What is 2 + 5?\n{ADAP}").messages
    )
    with pytest.raises(ThriftyError, match="adap"):
        method.prompt(pebble, job, "something else")


def solve(model: TorchModel, spec: str, count: int = 7, **values: float) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 150, **values})  # type: ignore[arg-type]
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def ids(trace: Trace) -> list[int]:
    return [i for s in trace.segments for i in s.ids]


def test_equals_the_authors_loop_of_prompting_anew(pebble64: TorchModel) -> None:
    problems = {p.id: p for p in load_task("mix").problems(limit=3, seed=5)}
    hints = 0
    for key, trace in solve(
        pebble64, "concisehint(alpha=20)", 3, max_tokens=200, loop_stop=False, answer_reserve=0
    ).items():
        prompt = pebble64.encode_prompt(pebble64.render(problems[key].messages))

        def anew(response: list[int], tau: int, prompt: list[int] = prompt) -> list[int]:
            session, chunk = Session(pebble64), list[int]()
            session.add([[*prompt, *response]])
            for _ in range(tau):
                chunk.append(int(session.logits[0].argmax()))
                session.append(torch.tensor(chunk[-1:]))
            return chunk

        expected = authors_loop(pebble64, anew, prompt, 20, 3, paper=False)
        assert ids(trace)[: len(expected)] == expected
        hints += pebble64.texts.text(expected).count(HINT)
    assert hints >= 2


def test_end_to_end_it_hints_in_the_thinking_and_charges_for_it(pebble: TorchModel) -> None:
    traces = solve(pebble, "concisehint(alpha=24)").values()
    assert sum(trace.usage.reread > 0 for trace in traces) >= 3
    for trace in traces:
        usage, record = trace.usage, json.loads(trace.to_json())
        hints = [i for i, s in enumerate(trace.segments) if s.phase == "aside"]
        assert len(hints) == len(trace.events["concisehint"])
        for i in hints:
            assert trace.segments[i - 1].text[-1] in ".,"
            assert trace.segments[i + 1].text[0] == " "
        assert HINT not in trace.thinking_text + trace.answer_text
        aside = sum(len(trace.segments[i].ids) for i in hints)
        forced = [s for s in trace.segments if s.kind == "injected" and s.phase != "aside"]
        assert usage.injected == aside + sum(len(s.ids) for s in forced)
        assert thinking_tokens(record) == usage.thinking + sum(len(s.ids) for s in forced if s.phase == "thinking")
        assert (usage.reread > 0) == bool(hints)
        assert usage.total == usage.prompt + usage.thinking + usage.answer + usage.injected + usage.reread


def test_neither_batch_size_nor_neighbours_change_a_token(pebble64: TorchModel) -> None:
    spec = "concisehint(alpha=16)"
    alone, together = (solve(pebble64, spec, 7, batch_size=size, max_tokens=80, temperature=0.8) for size in (1, 7))
    assert {k: ids(t) for k, t in alone.items()} == {k: ids(t) for k, t in together.items()}
    assert any(t.events["concisehint"] for t in alone.values())


@pytest.mark.parametrize("options", ["alpha=0", "beta=-0.1", "beta=1e999", "cap=0", "count=words"])
def test_options_out_of_range_are_refused(options: str) -> None:
    with pytest.raises(ThriftyError, match=options.partition("=")[0]):
        get_method(f"concisehint({options})")
