"""Servers that behave in ways of their own, and clients that would teach the gateway something wrong about them."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from test_upstream import ASKED, ask, ask_code
from upstreams import SECRET, Handler, Reply, before, counts, delta, fails, hangs, says, scripted, sse

from thrifty.errors import ThriftyError
from thrifty.models.client import Patience
from thrifty.models.payload import account
from thrifty.serve import upstream_client
from thrifty.serve.engine import Done, Piece
from thrifty.serve.inbox import Inbox
from thrifty.serve.upstream_command import keys_for
from thrifty.serve.upstream_order import Learned
from thrifty.traces.think import Splitter, think_format
from thrifty.traces.trace import Usage

THINKING = says("", "One.\nTwo.\n", finish="length")


def kept(*events: Any) -> Reply:
    """Stream events over a connection that stays open."""

    def reply(handler: Handler, _: dict[str, Any]) -> None:
        data = b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events) + b"data: [DONE]\n\n"
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        handler.send_header("set-cookie", f"session={SECRET}; Path=/")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")
        places.append((handler.client_address[1], handler.headers.get("cookie")))

    places: list[tuple[int, str | None]] = []
    reply.places = places  # type: ignore[attr-defined]  # what a test looks at afterwards
    return reply


# Who opens the think block


def test_a_server_that_tells_reasoning_apart_takes_over_from_one_that_does_not() -> None:
    marked, apart = says("hm, hm</think>42"), says("42", "hm, hm")
    with scripted(marked, marked, fails(500)) as one, scripted(apart) as two, before(one.url, two.url) as server:
        assert [ask(server)[:2] for _ in range(4)] == [("hm, hm", "42")] * 4
    assert len(two.asked) == 2, "nothing had to be asked again"


def test_one_answer_about_markers_changes_nothing_for_others() -> None:
    plain = says("The sum is 115.")
    script = [plain, says("It ends with </think>, then goes on."), plain, plain]
    with scripted(*script) as upstream, before(upstream.url) as server:
        told = [ask(server)[:2] for _ in script]
    assert [told[n] for n in (0, 2, 3)] == [("", "The sum is 115.")] * 3


def test_a_response_that_was_cut_off_teaches_nothing() -> None:
    script = [says("hm, hm", finish="length"), says("hm, hm</think>42"), says("hm, hm</think>42")]
    with scripted(*script) as upstream, before(upstream.url) as server:
        assert [ask(server)[:2] for _ in script][1:] == [("hm, hm", "42")] * 2


def test_what_is_known_changes_after_two_responses_in_a_row() -> None:
    learned = Learned()
    seen = [False, True, False, True, True, False, True, False, False]
    known = []
    for opened in seen:
        learned.see(opened)
        known.append(learned.opened)
    assert known == [False, False, False, False, True, True, True, True, False]


def test_markers_of_the_operators_own() -> None:
    with scripted(says("<a>hm</a> 42")) as upstream, before(upstream.url, think=think_format("<a>,</a>")) as server:
        assert [ask(server)[:2] for _ in range(2)] == [("hm", "42")] * 2


def test_blanks_are_held_back_only_so_long() -> None:
    splitter = Splitter()
    assert splitter.feed(" " * 200) == []
    assert splitter.feed(" " * 200) == [("answer", " " * 400)]
    assert splitter.feed("<think>hm</think>") == [("thinking", "<think>"), ("thinking", "hm</think>")]


# Which server is asked, and over which connection


def test_a_silent_server_is_left_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_client, "FIRST_BYTE_SECONDS", 0.3)
    with scripted(hangs) as one, scripted(says("ef")) as two, before(one.url, two.url) as server:
        assert [ask(server)[1] for _ in range(2)] == ["ef"] * 2
    assert len(one.asked) == 1


@pytest.mark.parametrize("status", [402, 501, 520, 529])
def test_another_server_answers_for_any_failure(status: int) -> None:
    with scripted(fails(status)) as one, scripted(says("ef")) as two, before(one.url, two.url) as server:
        assert ask(server)[1] == "ef"


def test_connections_are_used_again_and_carry_no_cookies() -> None:
    reply = kept(delta("ef", "stop"), counts(7, 1))
    with scripted(reply) as upstream, before(upstream.url) as server:
        for _ in range(4):
            assert ask(server)[1] == "ef"
    places = reply.places  # type: ignore[attr-defined]  # see `kept`
    assert len({port for port, _ in places}) < 4
    assert {cookie for _, cookie in places} == {None}


def test_a_connection_that_the_server_has_closed_is_no_failure() -> None:
    def drops(handler: Handler, _: dict[str, Any]) -> None:
        handler.close_connection = True

    patience = Patience(timeout=30.0, retries=0)
    with scripted(drops, says("ef")) as upstream, before(upstream.url, patience=patience) as server:
        assert ask(server)[1] == "ef"


def test_each_key_goes_to_its_own_vendor() -> None:
    one, same, other = "https://a.example/v1", "https://a.example:443/v2#big", "https://b.example/v1"
    assert keys_for([one, same, other], ["KEY"]) == ["KEY", "KEY", ""]
    assert keys_for([one, other], ["KEY", "OTHER"]) == ["KEY", "OTHER"]
    assert keys_for([one, other], []) == ["", ""]
    with pytest.raises(ThriftyError, match="once per --upstream"):
        keys_for([one, same, other], ["KEY", "OTHER"])


def test_a_compressed_answer_is_not_unpacked() -> None:
    squeezed = fails(200, b"\x1f\x8b\x08\x00", content_encoding="gzip")
    with scripted(squeezed) as one, scripted(says("ef")) as two, before(one.url, two.url) as server:
        assert ask(server)[1] == "ef"


# Fields that a server does not take


def picky(handler: Handler, body: dict[str, Any]) -> None:
    """Take no stream_options, and no format of a response but JSON; quote what is wrong."""
    kind = body.get("response_format", {"type": "json_object"})["type"]
    if kind != "json_object" or "stream_options" in body:
        told = "stream_options: not permitted" if "stream_options" in body else f"no such format: {kind}"
        fails(400, json.dumps({"error": {"message": told}}).encode())(handler, body)
    else:
        says("ef")(handler, body)


def test_requests_side_by_side_learn_a_field_that_is_refused() -> None:
    with scripted(picky) as upstream, before(upstream.url) as server, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: ask(server)[1], range(8))) == ["ef"] * 8


def test_a_client_cannot_take_a_field_from_others() -> None:
    def echoes(handler: Handler, body: dict[str, Any]) -> None:
        kind = body.get("response_format", {"type": "text"})["type"]
        refused = fails(400, json.dumps({"error": {"message": f"no such format: {kind}"}}).encode())
        (says("ef") if kind == "text" else refused)(handler, body)

    with scripted(echoes) as upstream, before(upstream.url) as server:
        body = {"model": "tiny", "messages": ASKED, "response_format": {"type": "stream_options"}}
        server.post("/v1/chat/completions", body)
        assert ask(server)[1] == "ef"
    assert "stream_options" in upstream.asked[-1]


# What the second call answers


@pytest.mark.parametrize(("stop", "second", "content"), [("\n", "\n42", "42"), ("Answer", "", "Answer: 42.")])
def test_stop_strings_leave_an_answer(stop: str, second: str, content: str) -> None:
    first = says("", "One.\nAnswer: 42.", finish="length")
    with scripted(first, says(second)) as upstream, before(upstream.url, prefill="vllm") as server:
        assert ask(server, stop=[stop], max_tokens=64)[1] == content


def test_a_server_that_fails_on_a_prefill_is_asked_in_words() -> None:
    def fails_on_prefill(handler: Handler, body: dict[str, Any]) -> None:
        prefilled = body["messages"][-1]["role"] == "assistant"
        first = len(body["messages"]) == 1
        (fails(500) if prefilled else THINKING if first else says("42"))(handler, body)

    with scripted(fails_on_prefill) as upstream, before(upstream.url, prefill="assistant") as server:
        assert ask(server, max_tokens=64, reasoning_effort="high")[1] == "42"
    assert upstream.asked[0]["reasoning_effort"] == "high"
    assert upstream.asked[-1]["reasoning_effort"] == "low", "it shall not think it all again"


def test_a_raw_prompt_may_be_continued_by_blanks() -> None:
    blanks = sse({"choices": [{"text": " \n", "finish_reason": "length"}]})
    with scripted(blanks) as upstream, before(upstream.url) as server:
        server.client().completions.create(model="tiny", prompt="1 + 1 =", max_tokens=3)
    assert len(upstream.asked) == 1


def test_misplaced_answers_are_no_rule_of_a_response_that_was_cut_off() -> None:
    script = [THINKING, says("", "hm, hm", finish="length"), THINKING, says("42", "hm, hm")]
    with scripted(*script) as upstream, before(upstream.url, prefill="assistant") as server:
        ask(server, max_tokens=64)
        assert ask(server, max_tokens=64)[1] == "42"


# How streams end, and what they count


ENDS: dict[str, tuple[Reply, str]] = {
    "an error of vLLM's": (sse(delta("ef"), {"object": "error", "message": "out of memory"}), "upstream_broke_off"),
    "nothing at all": (sse({}, {}), "upstream_broke_off"),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_is_no_answer_is_not_told_as_one(name: str) -> None:
    reply, code = ENDS[name]
    with scripted(reply) as upstream, before(upstream.url) as server:
        assert ask_code(server) == code


def test_an_answer_that_has_ended_stays_one() -> None:
    with (
        scripted(sse(delta("ef", "stop"), end=b'data: {"choices": [{"del')) as upstream,
        before(upstream.url) as server,
    ):
        assert ask(server)[1] == "ef"


@pytest.mark.parametrize("told", [0, -5, True])
def test_counts_that_cannot_be_meant_hold_nothing_up(told: Any) -> None:
    events = [
        delta(None, reasoning_content=f"{n * n * 7919} ") | {"usage": {"prompt_tokens": 9, "completion_tokens": told}}
        for n in range(300)
    ]
    with scripted(sse(*events), says("42")) as upstream, before(upstream.url, prefill="vllm") as server:
        usage = ask(server, extra_body={"thrifty": {"budget": 20}})[2].usage
    assert 20 <= usage.completion_tokens_details.reasoning_tokens <= 25
    assert usage.thrifty["estimated"] is True


def test_counts_are_bounded() -> None:
    told = {"prompt_tokens": 10**400, "completion_tokens": -1, "total_tokens": True}
    assert account(told, 40, 0, 8) == (Usage(prompt=10, answer=2), {"usage_estimated": True})


def test_characters_of_a_token_are_a_clamped_mean() -> None:
    learned = Learned()
    learned.weigh(10**9, 1)
    assert learned.characters_per_token == 5.0
    learned.weigh(1, 1)
    assert learned.characters_per_token == 4.0


# What a slow reader finds


def test_a_reader_that_lags_gets_the_text_at_once() -> None:
    async def read() -> list[Any]:
        inbox = Inbox()
        for n in range(5000):
            inbox.put(Piece("thinking" if n < 3000 else "answer", f"{n},"))
        inbox.put(Done("stop", Usage(), 0, 0, "vanilla", "model", 0))
        return [event async for event in inbox]

    thinking, answer, done = asyncio.run(read())
    assert (thinking.channel, thinking.text, thinking.tokens) == (
        "thinking",
        "".join(f"{n}," for n in range(3000)),
        3000,
    )
    assert (answer.text, answer.tokens) == ("".join(f"{n}," for n in range(3000, 5000)), 2000)
    assert isinstance(done, Done)
