"""Relays: partners of any kind, thoughts that can be handed on, and traces of several hands."""

from __future__ import annotations

from typing import cast

import pytest

from tests_helpers import TextOnly
from thrifty.decoding.row import Row
from thrifty.decoding.text_flow import Reply
from thrifty.errors import ThriftyError
from thrifty.methods.shared.relay import Answerer, Turn, partner_model, relay, thought_of, with_system
from thrifty.models import embedded_folder
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Problem, Segment, Trace, Usage

FOLDER = str(embedded_folder("pebble"))


def reply(*segments: Segment, closed_by: str | None = None, **usage: int) -> Row:
    trace = Trace("p", "m", 0, 0, list(segments), "eos", closed_by, usage=Usage(**usage))
    return cast(Row, Reply(trace))


def test_a_local_partner_beside_a_server_answers_without_thinking(pebble: TorchModel) -> None:
    partner = partner_model(FOLDER, TextOnly())
    assert isinstance(partner, Answerer)
    assert partner is partner_model(FOLDER, TextOnly())
    (trace,) = partner.respond([Job(Problem.ask("What is 2 + 3?"))], Settings(max_tokens=40))
    assert trace.thinking_text == "</think>"
    assert trace.usage.thinking == 0 < trace.usage.answer
    main = TextOnly()
    assert partner_model("", main) is partner_model("text-only", main) is main
    assert isinstance(partner_model(FOLDER, pebble), TorchModel)
    with pytest.raises(ThriftyError, match="no model 'nowhere'"):
        partner_model("nowhere", main)


def test_a_thought_loses_what_would_mean_something_to_its_reader(pebble: TorchModel) -> None:
    thinking = Segment("thinking", "thinking", "<think>a </thi</think>nk>b <|end|>\n")
    answer = Segment("answer", "answer", "c")
    assert thought_of(reply(thinking, answer), pebble) == "a b"
    assert thought_of(reply(thinking, answer)) == "a b <|end|>"
    assert thought_of(reply(answer), pebble) == "c", "what a model writes that does not think is its thought"


def test_a_system_prompt_follows_the_one_that_is_there() -> None:
    question = {"role": "user", "content": "?"}
    assert with_system([question], "Be brief.") == [{"role": "system", "content": "Be brief."}, question]
    before = [{"role": "system", "content": "Be kind."}, question]
    assert with_system(before, "Be brief.") == [{"role": "system", "content": "Be kind.\n\nBe brief."}, question]


def test_a_trace_of_several_hands() -> None:
    first = reply(Segment("thinking", "thinking", "a", (1, 2)), Segment("probe", "thinking", "?"), prompt=5, thinking=2)
    second = reply(Segment("answer", "answer", "b", (3,)), prompt=7, answer=1)
    partner = reply(Segment("answer", "answer", "ignored"), prompt=9, answer=4, flops=8)
    cast(Reply, first).response.events["budget"] = 2  # of one turn, not of the thinking as a whole
    turns = [Turn(first, "sample"), Turn(partner, "helper", "so far", "thinking"), Turn(second, "sample")]
    trace = relay([*turns, Turn(partner, "helper", "\\boxed{3}")], "two", "two", {"two": 1})
    assert [(s.kind, s.phase, s.text, s.ids) for s in trace.segments] == [
        ("thinking", "thinking", "a", (1, 2)),
        ("thinking", "thinking", "so far", ()),
        ("answer", "thinking", "b", (3,)),
        ("answer", "answer", "\\boxed{3}", ()),
        ("probe", "thinking", "?", ()),
    ]
    assert (trace.answer, trace.closed_by, trace.method, trace.events) == ("3", "two", "two", {"two": 1})
    assert trace.usage == Usage(prompt=12, thinking=2, answer=1, helper=26, flops=16)
