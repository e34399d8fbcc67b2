"""Think blocks in every shape: the text is split where the model split it, and every token is counted once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from serving import Running, replay, serving

from thrifty.models import replay as replay_module
from thrifty.models.replay import PieceTexts, Recording, ReplayModel
from thrifty.traces.think import THINK_FORMATS


@dataclass
class Case:
    """A recorded response, and what a client is to see of it."""

    response: str
    reasoning: str
    content: str
    thought: str
    """What counts as reasoning, markers included."""
    stop: str | None = None
    written: str | None = None
    """What was written before a stop string ended it."""


CASES = {
    "opened by the model": Case("<think>\na b\n</think>\n\nc d", "a b\n", "c d", "<think>\na b\n</think>"),
    "opened in the prompt": Case("a b</think>c d", "a b", "c d", "a b</think>"),
    "unclosed": Case("<think>a b c", "a b c", "", "<think>a b c"),
    "two blocks": Case("<think>a</think>b<think>c</think>d", "ac", "bd", "<think>a</think><think>c</think>"),
    "closed twice": Case("<think>a</think>b</think>c", "a", "bc", "<think>a</think>"),
    "stop string in the thinking": Case(
        "<think>a STOP b</think>c STOP d", "a STOP b", "c ", "<think>a STOP b</think>", "STOP",
        "<think>a STOP b</think>c STOP",
    ),
    "stop string over tokens": Case(
        "<think>a</think>b c d e", "a", "b", "<think>a</think>", " c d", "<think>a</think>b c d"
    ),
    "stop string that does not come": Case("<think>a</think>b c d", "a", "b c d", "<think>a</think>", " c e"),
    "blank lines to stop at": Case(
        "<think>a</think>\n\nb\n\nc", "a", "b", "<think>a</think>", "\n\n", "<think>a</think>\n\nb\n\n"
    ),
    "stop string just before the answer": Case(
        "<think>a STOP</think>b c", "a STOP", "b c", "<think>a STOP</think>", "STOP"
    ),
}  # fmt: skip


def ask(server: Running, **options: Any) -> tuple[str, str, Any]:
    asked = [{"role": "user", "content": "question"}]
    answer = server.client().chat.completions.create(model="replay", messages=asked, **options)
    message = answer.choices[0].message
    return getattr(message, "reasoning_content", None) or "", message.content, answer


def streamed(server: Running, **options: Any) -> tuple[str, str]:
    asked = [{"role": "user", "content": "question"}]
    reasoning = content = ""
    for chunk in server.client().chat.completions.create(model="replay", messages=asked, stream=True, **options):
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
    return reasoning, content


@pytest.mark.parametrize("name", CASES)
def test_reasoning_and_answer_are_told_apart_and_counted(name: str) -> None:
    case = CASES[name]
    model = replay(question=case.response)
    with serving(model) as server:
        options = {"stop": case.stop} if case.stop else {}
        reasoning, content, answer = ask(server, **options)
        assert (reasoning, content) == (case.reasoning, case.content)
        assert streamed(server, **options) == (reasoning, content)
    ended = 0 if case.written else 1  # the token that ends a response
    assert answer.usage.completion_tokens == len(model.encode(case.written or case.response)) + ended
    assert answer.usage.completion_tokens_details.reasoning_tokens == len(model.encode(case.thought)) + (
        ended if name == "unclosed" else 0
    )
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("name", ["opened by the model", "opened in the prompt", "two blocks", "closed twice"])
def test_markers_may_be_split_over_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "PieceTexts", lambda _: PieceTexts(()))
    case = CASES[name]
    model = replay(question=case.response)
    assert len(model.encode("</think>")) == 4
    with serving(model) as server:
        reasoning, content, answer = ask(server)
        assert (reasoning, content) == (case.reasoning, case.content)
        assert streamed(server) == (reasoning, content)
    assert answer.usage.completion_tokens == len(model.encode(case.response)) + 1


def test_what_only_looks_like_a_marker_is_text() -> None:
    response = "<think>a < b <thi</think>c </thin d <think"
    with serving(replay(question=response)) as server:
        assert ask(server)[:2] == ("a < b <thi", "c </thin d <think")
        assert streamed(server) == ("a < b <thi", "c </thin d <think")


def test_a_model_without_think_blocks_only_answers() -> None:
    model = ReplayModel([Recording("question", "a <think> b")], "replay", THINK_FORMATS["none"])
    with serving(model) as server:
        assert ask(server)[:2] == ("", "a <think> b")


def test_a_raw_prompt_may_open_the_block() -> None:
    model = replay(question="a b</think>c d")
    with serving(model) as server:
        options = {"model": "replay", "prompt": "question\n<think>\n"}
        choice = server.client().completions.create(**options).choices[0]
        assert (choice.reasoning_content, choice.text) == ("a b", "c d")


def test_a_question_may_speak_of_markers() -> None:
    with serving(replay(**{"what is <think>": "<think>a</think>b"})) as server:
        asked = [{"role": "user", "content": "what is <think>"}]
        answer = server.client().chat.completions.create(model="replay", messages=asked)
        assert answer.choices[0].message.content == "b"
