"""Methods that ask a second server's model: its outline, its failures, its key, and its tokens."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from listening import Running
from serving import until
from test_upstream import ASKED, ask, streamed
from test_upstream_thinking import ENDLESS_THOUGHT
from upstreams import Handler, Reply, Scripted, before, delta, drops, endless, fails, hangs, nobody, says, scripted

from thrifty.errors import ThriftyError
from thrifty.methods.control.thoughtmani import GENERATOR_PROMPT
from thrifty.models.base import ANSWER_AT_ONCE, FOLLOW
from thrifty.serve.choosing import without_addresses
from thrifty.serve.upstream_helpers import Helpers

OUTLINE = "1. Add the tens.\n2. Add the ones."
EXPLAINED: dict[str, Any] = {"extra_body": {"thrifty": {"explain": True}}}
SLUG = "thoughtmani"


@contextmanager
def outlined(main: str, helper: str, more: str = "", **options: Any) -> Iterator[Running]:
    with before(main, method=f"thoughtmani(helper='{helper}#small'{more})", **options) as server:
        yield server


def told(server: Running, stream: bool, **options: Any) -> tuple[str, str, Any]:
    reasoning, content, answer = (streamed if stream else ask)(server, **{**EXPLAINED, **options})
    return reasoning, content, answer if stream else answer.usage


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prefill", ["vllm", "assistant", "none", "refused"])
def test_an_outline_stands_in_for_the_thinking(prefill: Any, stream: bool) -> None:
    script = [fails(400), says("115")] if prefill == "refused" else [says("115")]
    style = "assistant" if prefill == "refused" else prefill
    with scripted(*script) as main, scripted(says(OUTLINE)) as small:
        with outlined(main.url, small.url, prefill=style) as server:
            reasoning, content, usage = told(server, stream)
        (asked,) = small.asked
    assert (reasoning, content) == (OUTLINE, "115")
    assert asked["model"] == "small"
    assert asked["messages"] == [{"role": "user", "content": f"{GENERATOR_PROMPT}\n\n{ASKED[0]['content']}"}]
    assert (asked["temperature"], asked["max_tokens"]) == (0, 512)
    messages = main.asked[-1]["messages"]
    if prefill in ("none", "refused"):
        assert messages[1:] == [{"role": "assistant", "content": OUTLINE}, {"role": "user", "content": FOLLOW}]
    else:
        assert messages[1:] == [{"role": "assistant", "content": f"<think>\n{OUTLINE}\n</think>\n\n"}]
    thrifty = usage.thrifty
    assert thrifty["exit_reasons"] == [SLUG]
    assert thrifty["method"] == "thoughtmani(helper='small')", "addresses are nobody's business"
    tokens = thrifty["tokens"]
    written = -(-len(OUTLINE) // 3)
    assert (tokens["helper"], tokens["answer"], tokens["thinking"], tokens["prompt"]) == (7 + written, 1, 0, 7)
    assert thrifty["total_tokens"] == sum(tokens.values())
    (notes,) = thrifty["notes"]
    assert notes[SLUG]["declined"] is None
    assert (notes[SLUG]["helper_tokens"], notes[SLUG]["own_tokens"]) == (written, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_helper_that_declines_leaves_the_model_alone(stream: bool) -> None:
    with scripted(says("115", "38 + 77")) as main, scripted(says("Too hard: <STOP>")) as small:
        with outlined(main.url, small.url, prefill="vllm") as server:
            reasoning, content, usage = told(server, stream)
        assert main.asked[0]["messages"] == ASKED
    assert (reasoning, content) == ("38 + 77", "115")
    assert usage.thrifty["notes"][0][SLUG]["declined"] == "stop"
    assert usage.thrifty["tokens"]["helper"] == 7 + 6


FAILURES: dict[str, Reply] = {"500": fails(500), "silent": hangs, "a key": fails(401), "drops": drops}


@pytest.mark.parametrize("name", [*FAILURES, "down"])
def test_a_helper_that_fails_counts_as_declining(name: str) -> None:
    helpers = Helpers(timeout=0.3)
    with scripted(says("115", "38 + 77")) as main, scripted(FAILURES.get(name, drops)) as small:
        url = nobody() if name == "down" else small.url
        with outlined(main.url, url, helpers=helpers) as server:
            for more in ("", ",on_decline=ignore", ",on_decline=empty"):
                server.engine._served["tiny"] = server.engine._served["tiny"].__class__(
                    "tiny", None, 1 << 17, f"thoughtmani(helper='{url}#small'{more})"
                )
                reasoning, content, usage = told(server, stream=False)
                assert (reasoning, content) == ("38 + 77", "115")
                assert usage.thrifty["notes"][0][SLUG]["declined"] == "failed"
                assert bool(usage.thrifty["tokens"]["helper"]) == (name == "drops"), "what it took before counts"
                assert all(body["messages"] == ASKED for body in main.asked)


def test_each_server_gets_its_own_key_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIN_KEY", "sk-main")
    monkeypatch.setenv("SMALL_KEY", "sk-small")
    with scripted(says("115")) as main, scripted(says(OUTLINE)) as small:
        for variable, sent in (("SMALL_KEY", "Bearer sk-small"), ("", None)):
            helpers = Helpers({main.url: "MAIN_KEY"}, variable)
            with outlined(main.url, small.url, key="MAIN_KEY", helpers=helpers) as server:
                ask(server)
            assert (main.keys[-1], small.keys[-1]) == ("Bearer sk-main", sent)
        with outlined(main.url, main.url, key="MAIN_KEY", helpers=Helpers({main.url: "MAIN_KEY"}, "SMALL_KEY")) as one:
            ask(one)
        assert set(main.keys) == {"Bearer sk-main"}, "a helper at the same server has its key"
    helpers = Helpers({}, "SMALL_KEY")
    helpers.of("http://127.0.0.1:1/v1#a")
    helpers.of("http://127.0.0.1:1/v1#b")
    with pytest.raises(ThriftyError, match="to two servers"):
        helpers.of("http://127.0.0.1:2/v1#a")


@pytest.mark.parametrize(
    ("helper", "said"),
    [
        ("127.0.0.1:8001", "would have to run here"),
        ("pebble-small", "would have to run here"),
        ("http://#small", "not a server URL"),
        ("http://me:hush@h:port/v1#small", "not a server URL"),
        ("http://127.0.0.1:1/v1", "names no model"),
    ],
)
def test_a_helper_that_cannot_be_is_found_at_start(helper: str, said: str) -> None:
    for method in (f"thoughtmani(helper='{helper}')", f"plan-and-budget(planner='{helper}')"):
        with pytest.raises(ThriftyError, match=said) as mistake, before(nobody(), offered={"x": method}):
            pass
        assert "\n" not in str(mistake.value)
        assert "hush" not in str(mistake.value)


def test_clients_neither_name_helpers_nor_see_their_addresses() -> None:
    offered = {"mani": "thoughtmani(helper=http://me:hush@127.0.0.1:1/v1#small)"}
    with scripted(says("115")) as main, before(main.url, offered=offered) as server:
        body: dict[str, Any] = {"model": "tiny", "messages": ASKED}
        mine = {**body, "thrifty": {"method": SLUG, "params": {"helper": "http://127.0.0.1:1/v1#small"}}}
        assert server.post("/v1/chat/completions", mine).json()["error"]["code"] == "operator_only"
        for method in ("hawkeye", "long-short"):  # their default partner would be loaded here
            refused = server.post("/v1/chat/completions", {**body, "model": f"tiny@{method}"})
            assert refused.status_code == 400
            assert "--offer" in refused.json()["error"]["message"]
        assert main.asked == []
        listed = (
            server.get("/v1/models").text + server.post("/v1/chat/completions", {**body, "model": "tiny@mani"}).text
        )
    assert "thoughtmani(helper=small)" in listed
    assert "127.0.0.1" not in listed
    assert "hush" not in listed
    assert without_addresses("plan-and-budget(planner='https://h/v1')+cap") == "plan-and-budget(planner='')+cap"


def test_a_small_model_answers_on_another_server() -> None:
    with scripted(says("So 115.</think>")) as main, scripted(says("It is 115.")) as small:
        with before(main.url, method=f"hawkeye(small='{small.url}#small')") as server:
            _, content, usage = told(server, stream=False)
        assert "So 115." in small.asked[0]["messages"][-1]["content"]
    assert content == "It is 115."
    assert usage.thrifty["tokens"]["helper"] == 7 + 4


AFTER: dict[str, tuple[list[Reply], str]] = {
    "thinks again for ever": ([says(f"<think>\n{ENDLESS_THOUGHT}", finish="length"), says("115")], "vllm"),
    "thinks for ever, told apart": ([says("", ENDLESS_THOUGHT, finish="length"), says("115")], "none"),
    "says nothing": ([says(""), says(""), says("115")], "assistant"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", AFTER)
def test_no_answer_is_empty_whatever_the_model_makes_of_an_outline(name: str, stream: bool) -> None:
    script, prefill = AFTER[name]
    with scripted(*script) as main, scripted(says(OUTLINE)) as small:
        with outlined(main.url, small.url, prefill=prefill) as server:
            reasoning, content, usage = told(server, stream, max_tokens=64)
        assert small.asked[0]["max_tokens"] == 48, "no longer than what the client leaves for thinking"
    assert content == "115"
    assert reasoning.startswith(OUTLINE)
    assert usage.completion_tokens <= 64
    assert len(main.asked) == len(script)


def test_empty_blocks_and_an_outline_of_ones_own() -> None:
    with scripted(says("115")) as main, before(main.url, method="thoughtmani(thought=empty)") as server:
        assert ask(server)[:2] == ("", "115")
        assert main.asked[0]["messages"][0]["content"] == f"{ASKED[0]['content']}\n\n{ANSWER_AT_ONCE}"
    with scripted(says(OUTLINE), says("115")) as main, before(main.url, method=SLUG) as server:
        reasoning, content, answer = ask(server)
        assert {body["model"] for body in main.asked} == {"tiny"}
    assert (reasoning, content) == (OUTLINE, "115")
    assert answer.usage.thrifty["tokens"]["probe"] == 7 + -(-len(OUTLINE) // 3)
    with (
        scripted(says("</think>", "38 + 77")) as small,
        scripted(says("115")) as main,
        outlined(main.url, small.url, ",thought=reasoning") as server,
    ):
        assert ask(server)[:2] == ("38 + 77", "115")


def test_a_client_that_goes_stops_the_helper_and_is_charged_for_it() -> None:
    with scripted(says("115")) as main, scripted(endless("1. Add. ")) as small:
        with outlined(main.url, small.url, ",cap=100000", max_tokens=200_000) as server:
            body = {"model": "tiny", "messages": ASKED, "stream": True}
            with server.http.stream("POST", f"{server.address}/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                until(lambda: bool(small.asked))
            assert small.hung_up.acquire(timeout=60)
            until(lambda: spent(server) > 0)
        assert main.asked == []


def spent(server: Running) -> float:
    """Return the tokens that the gateway's counters tell."""
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("thrifty_tokens_total{"))


class Crowd:
    """Replies that wait until they are let go, and count who waits beside them."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.lock, self.go = reply, threading.Condition(), False
        self.now = self.most = 0

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.lock.notify_all()
            self.lock.wait_for(lambda: self.go, 60)
            self.now -= 1
        self.reply(handler, body)


def calling(server: Running, body: dict[str, Any]) -> tuple[threading.Thread, list[Any]]:
    """Ask in a thread."""
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(server.post("/v1/chat/completions", body)), daemon=True)
    asking.start()
    return asking, found


def test_the_slots_bound_the_calls_of_all_requests_together() -> None:
    crowd = Crowd(says("It is 115."))
    with scripted(crowd) as main, before(main.url, slots=3) as server:
        body = {"model": "tiny", "messages": ASKED, "n": 4, "thrifty": {"method": "majority(samples=20)"}}
        asking, found = calling(server, body)
        until(lambda: crowd.now == 3)
        with crowd.lock:
            crowd.go = True
            crowd.lock.notify_all()
        asking.join(60)
        assert [choice["message"]["content"] for choice in found[0].json()["choices"]] == ["It is 115."] * 4
        assert len(main.asked) == 80
    assert crowd.most == 3


def test_one_request_has_a_batch_of_calls_in_flight() -> None:
    crowd = Crowd(says("It is 115."))
    with scripted(crowd) as main, before(main.url) as server:
        body = {"model": "tiny", "messages": ASKED, "thrifty": {"method": "majority(samples=40)"}}
        asking, _ = calling(server, body)
        until(lambda: crowd.now == 16)
        with crowd.lock:
            crowd.go = True
            crowd.lock.notify_all()
        asking.join(60)
        assert len(main.asked) == 40
    assert crowd.most == 16


def test_prompts_are_begun_together() -> None:
    crowd = Crowd(says("ef"))
    with scripted(crowd) as main, before(main.url) as server:
        found: list[Any] = []
        body = {"model": "tiny", "prompt": ["a", "b", "c"]}
        asking = threading.Thread(target=lambda: found.append(server.post("/v1/completions", body)), daemon=True)
        asking.start()
        until(lambda: crowd.now == 3)
        with crowd.lock:
            crowd.go = True
            crowd.lock.notify_all()
        asking.join(60)
    assert [choice["text"] for choice in found[0].json()["choices"]] == ["ef"] * 3


@pytest.mark.parametrize("method", ["vanilla", "majority(samples=2)", "majority(samples=2,early=true)"])
@pytest.mark.parametrize("n", [1, 2])
def test_what_broke_off_was_still_used(method: str, n: int) -> None:
    with scripted(drops) as main, before(main.url) as server:
        body = {"model": "tiny", "messages": ASKED, "n": n, "thrifty": {"method": method}}
        refused = server.post("/v1/chat/completions", body)
        assert refused.json()["error"]["code"] == "upstream_broke_off"
        until(lambda: spent(server) > 0)
        assert 'exit_reason="broken"' in server.get("/metrics").text


def test_a_flow_that_is_cancelled_tells_what_its_calls_took() -> None:
    def begins(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin(200, "text/event-stream")
        handler.wfile.write(f"data: {json.dumps(delta(None, reasoning_content='So, '))}\n\n".encode())
        hangs(handler, body)

    with scripted(begins) as main, before(main.url) as server:
        body = {"model": "tiny", "messages": ASKED, "stream": True, "thrifty": {"method": "majority(samples=3)"}}
        with server.http.stream("POST", f"{server.address}/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            (stream,) = server.engine._streams
            until(lambda: len(stream.writings) == 3 and all(writing.begun for writing in stream.writings))
        until(lambda: spent(server) > 0)
        assert 'exit_reason="cancelled"' in server.get("/metrics").text


def test_a_script_is_a_server(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing of what these tests do is told as a mistake of the program."""
    with scripted(says("115")) as main, scripted(fails(500)) as small, outlined(main.url, small.url) as server:
        assert isinstance(main, Scripted)
        assert json.loads(server.post("/v1/chat/completions", {"model": "tiny", "messages": ASKED}).text)["choices"]
    assert "Traceback" not in capfd.readouterr().err
