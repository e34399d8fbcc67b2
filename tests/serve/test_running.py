"""Requests while they run: finished early, left by their client, too many, or caught by the end of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlparse

import httpx
import openai
import pytest
from serving import Running, Wordy, replay, serving, until

from thrifty.serve.deadlines import Deadlines
from thrifty.serve.engine import Ask, Done
from thrifty.serve.guard import Door, digest
from thrifty.serve.limits import Limits
from thrifty.serve.saved import VanillaMean

CHAT = "/v1/chat/completions"
ENDLESS = 20_000
"""Tokens that no test waits for."""
ASKED: dict[str, Any] = {"model": "wordy", "messages": [{"role": "user", "content": "1 + 1"}], "max_tokens": ENDLESS}
ASKED |= {"temperature": 2.0}  # greedily it soon repeats itself, which ends a response


def endless() -> Wordy:
    model = Wordy.make()
    model.context_length = 1 << 15
    return model


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(endless(), slots=2, queue=3) as running:
        yield running


def at_work(server: Running) -> int:
    return len(server.engine._scheduler.plays) + len(server.engine._waiting)


def chunks(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def test_a_running_request_can_be_made_to_answer(server: Running) -> None:
    with httpx.stream("POST", server.address + CHAT, json={**ASKED, "stream": True}, timeout=600) as response:
        for number, chunk in enumerate(chunks(response.iter_lines())):
            if number == 3:
                finish = f"/v1/requests/{chunk['id']}/finish"
                answer = server.post(finish)
                assert (answer.status_code, answer.json()["finishing"]) == (200, True)
            if number > 3 and "content" in chunk["choices"][0]["delta"]:
                break
    assert number < ENDLESS // 2, "it would have thought much longer"
    until(lambda: at_work(server) == 0)
    assert server.post(finish).status_code == 404


def test_a_request_can_be_named_by_its_client(server: Running) -> None:
    found: list[httpx.Response] = []
    header = {"X-Request-ID": "my-request-1"}
    body = {**ASKED, "max_tokens": 2000}
    asking = threading.Thread(target=lambda: found.append(server.post(CHAT, body, headers=header)))
    asking.start()
    until(lambda: server.post("/v1/requests/my-request-1/finish").status_code == 200 or not asking.is_alive())
    asking.join()
    assert found[0].headers["x-request-id"] == "my-request-1"
    counted = found[0].json()["usage"]
    assert counted["completion_tokens"] == 2000
    # were it not for the request, only the reserve of 256 tokens would be left for the answer
    assert counted["thrifty"]["tokens"]["answer"] > 256


def test_of_two_requests_with_one_name_that_come_at_once_one_is_taken(server: Running) -> None:
    body = json.dumps({**ASKED, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: the-same-name\r\n"
    sent = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    address = urlparse(server.address)
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(socket.create_connection((address.hostname, address.port))) for _ in range(2)]
        for connection in both:
            connection.sendall(sent)
        assert sorted(connection.recv(1 << 16)[9:12] for connection in both) == [b"200", b"409"]
    until(lambda: at_work(server) == 0 and not server.gateway._running)


def test_tokens_of_what_failed_are_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(endless(), Door(limits=Limits(tokens=1_000_000)), slots=2) as server:
        allowance = server.gateway.app._app._allowances.of("")
        steps, step = iter(range(20)), server.engine._scheduler.step

        def fail_in_the_end() -> None:
            if next(steps, None) is None:
                raise IndexError("list index out of range")
            step()

        monkeypatch.setattr(server.engine._scheduler, "step", fail_in_the_end)
        response = server.post(CHAT, {**ASKED, "n": 2})
        assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_error")
        until(lambda: not server.gateway._running)
        figures = server.get("/status.json").json()
        assert figures["methods"]["vanilla"]["exit_reasons"] == {"broken": 2}
        assert figures["tokens"]["thinking"] > 20
        assert allowance._tokens.left == pytest.approx(1_000_000 - figures["total_tokens"], abs=100_000)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_nobody_writes_on_for_a_client_that_has_gone(
    server: Running, monkeypatch: pytest.MonkeyPatch, stream: bool, n: int
) -> None:
    ended: list[Done] = []
    monkeypatch.setattr(server.gateway, "_observe", lambda _, done: ended.append(done))
    body = json.dumps({**ASKED, "stream": stream, "n": n}).encode()
    address = urlparse(server.address)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: at_work(server) == n)
    until(lambda: len(ended) == n)
    assert {done.exit_reason for done in ended} == {"cancelled"}
    assert all(done.usage.generated < ENDLESS for done in ended)
    until(lambda: not server.gateway._running)
    assert at_work(server) == 0


def test_more_than_the_queue_holds_is_told_to_come_back(server: Running) -> None:
    with httpx.Client(timeout=600) as client:
        open_streams = [client.stream("POST", server.address + CHAT, json={**ASKED, "stream": True}) for _ in range(5)]
        try:
            for stream in open_streams:
                stream.__enter__()
            refused = server.post(CHAT, ASKED)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
        finally:
            for stream in open_streams:
                stream.__exit__(None, None, None)
    until(lambda: at_work(server) == 0)
    assert server.client().chat.completions.create(**{**ASKED, "max_tokens": 4}).choices[0].message.content


def test_others_can_neither_finish_nor_see_a_request() -> None:
    door = Door({digest("mine"): "mine", digest("yours"): "yours"})
    with serving(endless(), door, slots=2) as server:
        mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
        body = {**ASKED, "stream": True}
        with httpx.stream("POST", server.address + CHAT, json=body, headers=mine, timeout=600) as response:
            told = chunks(response.iter_lines())  # kept, or the client would hang up
            id = next(told)["id"]
            assert server.post(f"/v1/requests/{id}/finish", headers=yours).status_code == 404
            assert server.post(f"/v1/requests/{id}/finish").status_code == 401
            assert server.post(f"/v1/requests/{id}/finish", headers=mine).status_code == 200


def test_keys_open_every_door_but_one() -> None:
    with serving(Wordy.make(), Door({digest("mine"): "mine"}), slots=2) as server:
        for path in ("/v1/models", "/openapi.json", "/nothing", "/healthz/", "//healthz"):
            assert server.get(path).status_code == 401, path
        assert server.get("/healthz").json() == {"status": "ok"}
        assert server.client("mine").models.list().data[0].id == "wordy"
        with pytest.raises(openai.AuthenticationError) as refused:
            server.client("theirs").models.list()
        assert refused.value.code == "invalid_api_key"


def test_a_stream_is_ended_when_the_engine_is() -> None:
    with serving(endless(), slots=2) as server:
        with httpx.stream("POST", server.address + CHAT, json={**ASKED, "stream": True}, timeout=600) as response:
            lines = response.iter_lines()
            next(lines)
            asyncio.run(server.engine.close())
            told = [line for line in lines if line]
        assert json.loads(told[-2].removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert server.post(CHAT, ASKED).status_code == 503


def test_a_share_of_the_requests_is_answered_plainly_beside() -> None:
    model = replay(question="<think>a b c d e f</think>g")
    with serving(model, vanilla=VanillaMean(), share=0.5) as server:
        asked = {"model": "replay@first-try", "messages": [{"role": "user", "content": "question"}]}
        for _ in range(4):
            usage = server.client().chat.completions.create(**asked).usage
        until(lambda: not server.gateway._shadows)
        assert server.gateway.vanilla._means["replay"].count == 2
        assert usage.thrifty["method"] == "first-try"


@pytest.mark.parametrize("deadline", [None, 0.1])
def test_what_nobody_asked_for_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch, deadline: float | None) -> None:
    with serving(endless(), share=1.0, slots=2) as server:
        monkeypatch.setattr(server.gateway, "deadlines", Deadlines(total=deadline))
        plain = {**ASKED, "model": "wordy@cap(budget=2)", "max_tokens": 8}
        monkeypatch.setattr(server.gateway, "_measure", _longer(server.gateway._measure))
        assert server.post(CHAT, plain).status_code == 200
        if deadline is None:
            until(lambda: at_work(server) == 1)
            (shadow,) = server.gateway._shadows.values()
            shadow._streams[0].loop.call_soon_threadsafe(server.gateway.stop, 1000.0)
        until(lambda: not server.gateway._shadows and at_work(server) == 0)
        assert not server.gateway.vanilla._means, "it says nothing about what a plain response takes"


def _longer(measure: Callable[[Ask], None]) -> Callable[[Ask], None]:
    return lambda ask: measure(replace(ask, settings=ask.settings.with_(max_tokens=ENDLESS)))
