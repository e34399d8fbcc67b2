"""The gateway before other servers: what goes through unchanged, what is counted, and what goes wrong there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from listening import Running
from upstreams import (
    SECRET,
    Reply,
    answers_whole,
    before,
    delta,
    drops,
    endless,
    fails,
    fails_for_ever,
    hangs,
    nobody,
    says,
    scripted,
    sse,
)

from thrifty.errors import ThriftyError
from thrifty.models.client import Patience
from thrifty.serve.upstream_client import Upstreams

ASKED: list[Any] = [{"role": "user", "content": "38 + 77"}]


def ask(server: Running, **options: Any) -> tuple[str, str, Any]:
    answer = server.client().chat.completions.create(model="tiny", messages=ASKED, **options)
    message = answer.choices[0].message
    return getattr(message, "reasoning_content", None) or "", message.content or "", answer


def streamed(server: Running, **options: Any) -> tuple[str, str, Any]:
    reasoning = content = ""
    usage = None
    for chunk in server.client().chat.completions.create(model="tiny", messages=ASKED, stream=True, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
    return reasoning, content, usage


@dataclass
class Case:
    """What a server says, and what a client is to see of it."""

    reply: Reply
    reasoning: str
    content: str
    completion: int
    stop: str | None = None


THOUGHT = "<think>\nab STOP cd\n</think>\n\nef gh"
CASES = {
    "told apart": Case(says("\n\nef gh", "ab STOP cd"), "ab STOP cd", "ef gh", 7),
    "opened by the model": Case(says(THOUGHT), "ab STOP cd\n", "ef gh", 12),
    "a byte at a time": Case(says(THOUGHT, size=1), "ab STOP cd\n", "ef gh", 12),
    "a character in each delta": Case(says(THOUGHT, step=1), "ab STOP cd\n", "ef gh", 34),
    "opened in the prompt": Case(says("ab STOP cd</think>ef gh"), "ab STOP cd", "ef gh", 8),
    "two blocks": Case(says("<think>ab</think>\n<think>cd</think>ef"), "abcd", "ef", 13),
    "no thinking": Case(says(" ef gh"), "", " ef gh", 2),
    "what only looks like a marker": Case(says("<thin 1 < 2 </thin"), "", "<thin 1 < 2 </thin", 6),
    "a stop string in the thinking": Case(says(THOUGHT), "ab STOP cd\n", "ef gh", 12, "STOP"),
    "a stop string in the answer": Case(says("ef gh STOP ij", "ab"), "ab", "ef gh ", 5, "STOP"),
    "a whole answer": Case(answers_whole("ef gh"), "", "ef gh", 2),
    "a token that is half a character": Case(says("ef 多ö", step=1, size=1), "", "ef 多ö", 5),
}


@pytest.mark.parametrize("name", CASES)
def test_streams_and_whole_answers_are_the_same_text_with_the_same_count(name: str) -> None:
    case = CASES[name]
    options = {"stop": case.stop} if case.stop else {}
    with scripted(case.reply) as upstream, before(upstream.url) as server:
        for _ in range(2):  # the first response of a model may teach the gateway who opens its blocks
            reasoning, content, answer = ask(server, **options)
            assert (reasoning, content) == (case.reasoning, case.content)
            told = streamed(server, **options)
            assert told[:2] == (reasoning, content)
            for usage in (answer.usage, told[2]):
                assert usage.completion_tokens == case.completion
                assert bool(usage.completion_tokens_details.reasoning_tokens) == bool(case.reasoning)
                assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_reasoning_tokens_are_the_servers_where_it_tells_them() -> None:
    with scripted(says("efgh", "abcdef")) as upstream, before(upstream.url) as server:
        usage = ask(server)[2].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 4)
    assert usage.completion_tokens_details.reasoning_tokens == 2
    assert usage.thrifty["estimated"] is False
    assert usage.thrifty["tokens"]["thinking"] == 2


def test_without_a_usage_counts_are_estimates_and_say_so() -> None:
    with scripted(says("efgh", "abcdef", usage=None)) as upstream, before(upstream.url) as server:
        usage = ask(server)[2].usage
    assert usage.thrifty["estimated"] is True
    assert usage.completion_tokens == 4


def test_what_a_client_asks_for_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", SECRET)
    form = {"type": "json_object"}
    with scripted(says('{"a": 1}')) as upstream, before(upstream.url + "#big", key="UPSTREAM_KEY") as server:
        ask(
            server, temperature=0.5, top_p=0.9, seed=4, max_tokens=50, response_format=form, reasoning_effort="low",
            presence_penalty=0.5, extra_body={"top_k": 3},
        )  # fmt: skip
        ask(server)
        server.client().completions.create(model="tiny", prompt="1 + 1 =", max_tokens=3)
    first, plain, raw = upstream.asked
    assert upstream.keys[0] == f"Bearer {SECRET}"
    assert first == {
        "model": "big", "messages": ASKED, "stream": True, "stream_options": {"include_usage": True},
        "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 4, "max_tokens": 50, "response_format": form,
        "reasoning_effort": "low", "presence_penalty": 0.5,
    }  # fmt: skip
    assert set(plain) == {"model", "messages", "stream", "stream_options", "seed"}
    assert (raw["prompt"], raw["max_tokens"], upstream.paths[-1]) == ("1 + 1 =", 3, "/v1/completions")


def test_samples_differ_in_their_seeds() -> None:
    with scripted(says("ef")) as upstream, before(upstream.url) as server:
        answer = ask(server, n=3, seed=4)[2]
    assert [choice.message.content for choice in answer.choices] == ["ef"] * 3
    seeds = [body["seed"] for body in upstream.asked]
    assert 4 in seeds
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("said", "field"),
    [("stream_options: extra fields not permitted", "stream_options"), ("Use 'max_completion_tokens'", "max_tokens")],
)
def test_fields_that_a_server_does_not_take_are_left_out_from_then_on(said: str, field: str) -> None:
    refuses = fails(400, json.dumps({"error": {"message": said}}).encode())
    with scripted(refuses, says("ef")) as upstream, before(upstream.url) as server:
        assert [ask(server, max_tokens=9)[1] for _ in range(2)] == ["ef", "ef"]
    assert [field in body for body in upstream.asked] == [True, False, False]


BROKEN = [delta("ef"), {"error": {"message": "out of memory"}}]
FAILURES: dict[str, tuple[Reply, int, str]] = {
    "busy": (fails(429, retry_after="17"), 429, "upstream_busy"),
    "broken": (fails(500), 502, "upstream_failed"),
    "an endless error": (fails_for_ever, 502, "upstream_failed"),
    "silent": (hangs, 504, "upstream_timeout"),
    "half a JSON": (sse(end=b'data: {"choices": [{"delta": {"con'), 502, "upstream_broke_off"),
    "no events": (sse(end=b""), 502, "upstream_broke_off"),
    "a page": (fails(200, b"<html>"), 502, "upstream_broke_off"),
    "deep JSON": (sse(end=b"data: " + b"[" * 100_000 + b"\n\n"), 502, "upstream_broke_off"),
    "an endless line": (sse(end=b"data: " + b"x" * (1 << 18)), 502, "upstream_broke_off"),
    "numbers for texts": (sse({"choices": [{"delta": {"content": 5}}]}), 502, "upstream_broke_off"),
    "a wrong key": (fails(401), 502, "upstream_key"),
    "no such model": (fails(404), 502, "upstream_not_found"),
    "a refusal": (fails(400), 400, "upstream_refused"),
    "too long": (fails(400, b'{"error": "maximum context length is 9"}'), 400, "context_length_exceeded"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_goes_wrong_is_one_clean_error_and_touches_nobody_else(name: str) -> None:
    reply, status, code = FAILURES[name]
    patience = Patience(timeout=0.3 if name == "silent" else 30.0, retries=0, max_bytes=1 << 16)
    with scripted(reply) as upstream, before(upstream.url, patience=patience) as server:
        for stream in (False, True):
            told = server.post("/v1/chat/completions", {"model": "tiny", "messages": ASKED, "stream": stream})
            error = told.json()["error"]
            assert (told.status_code, error["code"]) == (status, code)
            assert "\n" not in error["message"]
            assert "127.0.0.1" not in error["message"], "addresses behind the gateway are nobody's business"
        assert told.headers.get("retry-after") == ("17" if name == "busy" else None)
        upstream.script = [says("ef gh")]
        assert ask(server)[1] == "ef gh"


@pytest.mark.parametrize("reply", [drops, sse(*BROKEN)], ids=["drop", "error"])
def test_a_stream_that_breaks_off_ends_with_an_error(reply: Reply) -> None:
    with scripted(says("ef"), reply) as upstream, before(upstream.url) as server:
        ask(server)
        with pytest.raises(openai.APIError, match="broke off"):
            streamed(server)
        assert ask_code(server) == "upstream_broke_off"


def ask_code(server: Running) -> str:
    told = server.post("/v1/chat/completions", {"model": "tiny", "messages": ASKED})
    return str(told.json()["error"]["code"])


def test_an_answer_without_end_is_cut_off() -> None:
    patience = Patience(timeout=30.0, retries=0, max_bytes=4096)
    with scripted(endless("x y ")) as upstream, before(upstream.url, patience=patience, max_tokens=99) as server:
        assert ask_code(server) in ("upstream_too_large", "None")


@pytest.mark.parametrize("first", [fails(500), fails(429, retry_after="0"), fails(401)], ids=["500", "429", "401"])
def test_another_server_answers_where_the_first_fails(first: Reply) -> None:
    with scripted(first) as one, scripted(says("ef")) as two, before(one.url, two.url + "#its-name") as server:
        assert [ask(server)[1] for _ in range(3)] == ["ef"] * 3
    assert len(one.asked) == 1, "a server that has failed is not asked first for a while"
    assert two.asked[0]["model"] == "its-name"


def test_nobody_there_and_then_somebody() -> None:
    with scripted(says("ef")) as upstream, before(nobody(), upstream.url) as server:
        assert ask(server)[1] == "ef"
    with before(nobody()) as server:
        assert ask_code(server) == "upstream_failed"


def test_another_attempt_may_succeed() -> None:
    with scripted(fails(503), says("ef")) as upstream, before(upstream.url) as server:
        assert ask(server)[1] == "ef"


def test_a_client_that_goes_hangs_up_on_the_server() -> None:
    with scripted(endless("", "x, y, z; ")) as upstream, before(upstream.url) as server:
        stream = server.client().chat.completions.create(model="tiny", messages=ASKED, stream=True)
        next(iter(stream))
        stream.close()
        assert upstream.hung_up.acquire(timeout=60)


def test_nothing_is_offered_that_cannot_be_had() -> None:
    with scripted(says("ef")) as upstream, before(upstream.url) as server:
        body = {"model": "tiny", "messages": ASKED, "logprobs": True}
        assert "local models" in server.post("/v1/chat/completions", body).json()["error"]["message"]
        body = {"model": "tiny", "messages": ASKED, "tools": [{"type": "function"}]}
        assert server.post("/v1/chat/completions", body).json()["error"]["param"] == "tools"
    assert upstream.asked == []


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "ftp://x/v1", "http://me:hush@h:port/v1"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ThriftyError, match="not a server URL") as caught:
        Upstreams([url])
    assert "hush" not in str(caught.value)
