"""Thinking on another server, steered as text: it is closed in time, and an answer comes whatever happens."""

from __future__ import annotations

import itertools
import json
import threading
from typing import Any

import pytest
from test_upstream import ASKED, ask, streamed
from upstreams import Handler, Reply, before, counts, delta, fails, says, scripted, sse

from thrifty.errors import ThriftyError
from thrifty.serve.upstream_order import ANSWER_NOW

ENDLESS_THOUGHT = "".join(f"Let me see {n * n * 7919 % 1000}. " for n in range(400))


def thinks(reasoning: str = ENDLESS_THOUGHT, style: str = "told apart", **options: Any) -> Reply:
    """Think and not come to an end within the limit."""
    if style == "told apart":
        return says("", reasoning, finish="length", **options)
    return says(f"<think>\n{reasoning}", finish="length", **options)


STYLES = ["told apart", "markers"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prefill", ["vllm", "assistant", "none"])
@pytest.mark.parametrize("style", STYLES)
def test_the_thinking_is_closed_in_time_and_the_answer_asked_for(prefill: Any, style: str, stream: bool) -> None:
    with scripted(thinks(style=style), says("42")) as upstream, before(upstream.url, prefill=prefill) as server:
        reasoning, content, answer = (streamed if stream else ask)(server, max_tokens=64)
    first, second = upstream.asked
    assert content == "42"
    assert ENDLESS_THOUGHT.startswith(reasoning)
    assert 10 < len(reasoning) < 200, "a quarter of the limit is kept for the answer"
    assert reasoning.rstrip().endswith("."), "it is cut at the end of a sentence"
    assert first["max_tokens"] == 64
    assert 16 <= second["max_tokens"] <= 54
    usage = answer if stream else answer.usage
    assert usage.completion_tokens <= 64
    assert usage.thrifty["exit_reasons"] == ["limit"]
    assert usage.thrifty["tokens"]["reread"] == 7, "what the second call read is in the account"
    last = second["messages"][-1]
    if prefill == "none":
        assert last == {"role": "user", "content": ANSWER_NOW}
        assert second["messages"][-2]["content"] == reasoning
    else:
        assert last == {"role": "assistant", "content": f"<think>\n{reasoning.rstrip()}\n</think>\n\n"}
        assert second.get("continue_final_message", False) == (prefill == "vllm")
        assert second.get("add_generation_prompt", True) == (prefill != "vllm")


SECOND: dict[str, tuple[list[Reply], str, str]] = {
    "told as reasoning": ([says("", "42")], "assistant", "42"),
    "no prefill there": ([fails(400), says("42")], "assistant", "42"),
    "no prefill beside thinking": (
        [fails(400, b'{"error": "Assistant response prefill is incompatible with enable_thinking."}'), says("42")],
        "assistant", "42",
    ),
    "thinks again": ([says("42", "hm, hm")], "none", "42"),
    "thinks again for ever": ([thinks("So 7 it is.\nNo, 8")], "none", "No, 8"),
    "says nothing": ([says("", "", finish="length")], "none", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", SECOND)
def test_no_answer_is_empty_whatever_the_second_call_does(name: str) -> None:
    replies, prefill, content = SECOND[name]
    with scripted(thinks("One.\nTwo.\n"), *replies) as upstream, before(upstream.url, prefill=prefill) as server:
        told = ask(server, max_tokens=64)
    assert told[1] == (content or "Two.")
    assert told[2].usage.thrifty["exit_reasons"][0] in ("limit", "max_tokens")


def test_json_mode_gets_json_or_an_error() -> None:
    form = {"type": "json_object"}
    with scripted(thinks(), says('{"a": 1}'), thinks()) as upstream, before(upstream.url) as server:
        assert ask(server, max_tokens=64, response_format=form)[1] == '{"a": 1}'
        assert [body["response_format"] for body in upstream.asked] == [form, form]
        body = {"model": "tiny", "messages": ASKED, "max_tokens": 64, "response_format": form}
        assert server.post("/v1/chat/completions", body).json()["error"]["code"] == "no_answer"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("limit", [1, 2, 5, 40])
def test_whatever_the_limit(limit: int, style: str) -> None:
    with scripted(thinks(style=style), says("4")) as upstream, before(upstream.url, prefill="vllm") as server:
        for _ in range(2):
            assert ask(server, max_tokens=limit)[1] == "4"
            upstream.script = [thinks(style=style), says("4")]


LINES = "First I add.\n38 + 77 = 115.\nWait, once more.\nSo the answer is 115.\n" + ENDLESS_THOUGHT
METHODS = {
    "cap": ("cap(budget=30)", ENDLESS_THOUGHT, "cap"),
    "first-try": ("first-try", LINES, "first-try"),
    "both": ("cap(budget=1000)+first-try", LINES, "first-try"),
    "s1": ("s1(maximum=30)", ENDLESS_THOUGHT, "s1"),
    "no-think": ("no-think", "", "no-think"),
    "loop": ("vanilla", "Wait, but that is not right. " * 200, "loop"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_methods_that_watch_the_stream(name: str, stream: bool) -> None:
    method, thought, closed_by = METHODS[name]
    script = [says("42")] if name == "no-think" else [thinks(thought), says("42")]
    with scripted(*script) as upstream, before(upstream.url, prefill="vllm") as server:
        options = {"extra_body": {"thrifty": {"method": method}}}
        reasoning, content, answer = (streamed if stream else ask)(server, max_tokens=2000, **options)
    assert content == "42"
    assert len(reasoning) < len(thought) or name == "no-think"
    assert (answer if stream else answer.usage).thrifty["exit_reasons"] == [closed_by]
    if name in ("first-try", "both"):
        assert reasoning == LINES[: len(reasoning)]
        assert reasoning.endswith(("115.\n", "115.")), "it stops at the first candidate"
    assert len(upstream.asked) == (1 if name == "no-think" else 2)


def test_counts_of_a_server_that_tells_them_all_along_are_exact() -> None:
    events = [
        delta(None, reasoning_content="one two three. ") | {"usage": {"prompt_tokens": 9, "completion_tokens": 4 * n}}
        for n in range(1, 100)
    ]
    final = sse(delta("42", "stop"), counts(30, 1))
    with scripted(sse(*events), final) as upstream, before(upstream.url, prefill="vllm") as server:
        usage = ask(server, extra_body={"thrifty": {"budget": 20}})[2].usage
    assert upstream.asked[0]["stream_options"]["continuous_usage_stats"] is True
    assert (usage.prompt_tokens, usage.completion_tokens) == (9, 21)
    assert usage.completion_tokens_details.reasoning_tokens == 20
    assert usage.thrifty["tokens"]["reread"] == 30


def test_a_client_may_close_the_thinking() -> None:
    def thinks_on(handler: Handler, _: dict[str, Any]) -> None:
        handler.begin(200, "text/event-stream")
        for n in itertools.count():  # the same again and again would end by itself
            handler.wfile.write(f"data: {json.dumps(delta(reasoning_content=f'{n * n * 7919}, '))}\n\n".encode())

    with scripted(thinks_on, says("42")) as upstream, before(upstream.url) as server:
        headers = {"X-Request-ID": "my-request-1"}
        stream = server.client().chat.completions.create(
            model="tiny", messages=ASKED, stream=True, extra_headers=headers,
            extra_body={"thrifty": {"method": "cap(budget=-1)"}}, max_tokens=130_000,
        )  # fmt: skip
        content, asked = "", threading.Event()
        for chunk in stream:
            if not asked.is_set() and chunk.choices and getattr(chunk.choices[0].delta, "reasoning_content", None):
                asked.set()
                assert server.post("/v1/requests/my-request-1/finish").status_code == 200
            content += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert content == "42"


def test_effort_is_the_servers_or_a_bound() -> None:
    with scripted(says("42", "hm")) as upstream, before(upstream.url) as server:
        ask(server, reasoning_effort="high")
        ask(server, reasoning_effort="auto")
        body = {"thrifty": {"method": "first-try"}}
        ask(server, reasoning_effort="high", extra_body=body)
    assert [body.get("reasoning_effort") for body in upstream.asked] == ["high", "low", None]
    with scripted(thinks(), says("42")) as upstream, before(upstream.url, efforts=False) as server:
        assert len(ask(server, reasoning_effort="minimal", max_tokens=800)[0]) < 200
    assert "reasoning_effort" not in upstream.asked[0]


def test_majority_ends_as_soon_as_it_is_decided() -> None:
    samples = [says("The answer is 115.", "38 + 77")] * 2 + [says("It is 7.")]
    with scripted(*samples) as upstream, before(upstream.url) as server:
        body = {"thrifty": {"method": "majority(samples=3,early=true)", "explain": True}}
        reasoning, content, answer = ask(server, extra_body=body)
    assert (reasoning, content) == ("38 + 77", "The answer is 115.")
    assert len(upstream.asked) == 2
    assert len({body["seed"] for body in upstream.asked}) == 2
    assert answer.usage.thrifty["tokens"]["prompt"] == 14
    assert answer.usage.prompt_tokens == 7


def test_plans_are_made_and_the_answer_streamed() -> None:
    with scripted(says("3"), says("42", "hm")) as upstream, before(upstream.url) as server:
        body = {"thrifty": {"method": "plan-and-budget(mode=global_budget)"}}
        reasoning, content, usage = streamed(server, extra_body=body, response_format={"type": "json_object"})
    assert (reasoning, content) == ("hm", "42")
    planner, main = upstream.asked
    assert "response_format" not in planner
    assert "response_format" in main
    assert usage.thrifty["tokens"]["probe"] == 8, "the planner is in the account"
    assert planner["temperature"] == 0.1


REFUSED = ["cgrs", "tldr", "first-try(gates='x.json')", "s1(minimum=50)", "group-think", "majority+cgrs"]


@pytest.mark.parametrize("method", REFUSED)
def test_methods_that_need_more_than_text_are_refused(method: str) -> None:
    with scripted(says("42")) as upstream:
        with (
            pytest.raises(ThriftyError, match=r"serve --model FOLDER.*cap, .*vanilla"),
            before(upstream.url, method=method),
        ):
            pass
        if "gates" in method:
            return  # files are the operator's to name
        with before(upstream.url) as server:
            body = {"model": f"tiny@{method}", "messages": ASKED}
            told = server.post("/v1/chat/completions", body)
            assert told.status_code == 400
            assert "needs more of a model than its text" in told.json()["error"]["message"]
    assert upstream.asked == []
