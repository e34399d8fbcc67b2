"""What each key may ask for, and how long a request may take."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from serving import Running, Wordy, serving, until

from thrifty.serve.answering import Answering
from thrifty.serve.deadlines import Deadlines, end_within
from thrifty.serve.errors import DEADLINE, Refusal
from thrifty.serve.guard import Door, digest
from thrifty.serve.limits import MOST_DEBT, Allowance, Bucket, Limits

CHAT = "/v1/chat/completions"
SHORT: dict[str, Any] = {"model": "wordy", "messages": [{"role": "user", "content": "1 + 1"}], "max_tokens": 8}
ENDLESS: dict[str, Any] = {**SHORT, "max_tokens": 20_000, "temperature": 2.0}
KEYS = [f"key {number}" for number in range(20)]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = Wordy.make()
    model.context_length = 1 << 15
    limits = Limits(concurrency=1, requests=3, tokens=10_000_000)
    with serving(model, Door({digest(key): key for key in KEYS}, limits=limits), slots=2, queue=8) as running:
        yield running


_unused = iter(KEYS)


@pytest.fixture
def key() -> str:
    """A key that nobody has used yet."""
    return next(_unused)


@pytest.fixture
def other() -> str:
    """Another one."""
    return next(_unused)


def header(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@contextlib.contextmanager
def streaming(server: Running, key: str, n: int = 1) -> Iterator[None]:
    """Keep a request at work that does not end by itself, and no other."""
    body = {**ENDLESS, "stream": True, "n": n}
    with httpx.stream("POST", server.address + CHAT, json=body, headers=header(key), timeout=600) as response:
        lines = response.iter_lines()  # kept, or the client would hang up
        assert next(lines)
        until(lambda: len(server.engine._scheduler.plays) == n and not server.engine._waiting)
        yield


class Hand:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_fills_up_within_a_minute() -> None:
    clock = Hand()
    bucket = Bucket(60, clock)
    bucket.take(90)
    assert (bucket.left, bucket.wait(1), bucket.wait(1000)) == (-30, 31, 90)
    clock.now = 31
    assert (bucket.left, bucket.wait(1)) == (1, 0)
    clock.now = 1000
    assert bucket.left == 60
    bucket.take(1_000_000)
    assert bucket.left == -60 * MOST_DEBT


def test_nothing_flows_in_for_what_is_only_set_aside() -> None:
    clock = Hand()
    allowance = Allowance(Limits(tokens=1000), clock)
    reserved = []
    for minute in range(10):
        clock.now = 60.0 * minute
        with contextlib.suppress(Refusal):
            reserved.append(allowance.reserve(600))
    for each in reserved:  # they write all of it at the end, and at once
        allowance.spend(600)
        allowance.release(each)
    assert reserved == [600]
    with pytest.raises(Refusal):
        allowance.reserve(401)


def test_an_allowance_counts_what_was_really_taken() -> None:
    clock = Hand()
    allowance = Allowance(Limits(tokens=100), clock)
    reserved = allowance.reserve(70)
    with pytest.raises(Refusal, match="100 tokens a minute: lower max_tokens, or try again in 24 s") as refused:
        allowance.reserve(70)
    assert (refused.value.status, refused.value.retry_after) == (429, 24)
    allowance.spend(10)
    allowance.release(reserved)
    assert allowance.reserve(90) == 90
    allowance.release(90)
    assert dict(allowance.headers())[b"x-ratelimit-remaining-tokens"] == b"90"
    clock.now = 60
    assert allowance.reserve(100_000) == 100, "more than a minute has waits for a whole minute's, and no longer"


def test_a_request_that_fails_gives_its_place_back() -> None:
    allowance = Allowance(Limits(concurrency=1))
    with contextlib.suppress(KeyError), allowance.request():
        raise KeyError
    with allowance.request(), pytest.raises(Refusal, match="1 requests at the same time"):
        allowance.request().__enter__()
    assert allowance.at_work == 0


def test_whoever_has_an_answer_may_ask_again_at_once(server: Running, key: str) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            response = client.post(server.address + CHAT, json=SHORT, headers=header(key), timeout=600)
            assert response.status_code == 200, response.text


def test_requests_by_the_minute_are_counted_for_each_key(server: Running, key: str, other: str) -> None:
    told = [server.post(CHAT, SHORT, headers=header(key)) for _ in range(3)]
    assert [response.status_code for response in told] == [200] * 3
    assert told[0].headers["x-ratelimit-limit-requests"] == "3"
    allowance = server.gateway.app._app._allowances.of(digest(key))
    allowance._requests.take(allowance._requests.left + 1)  # however long these have taken
    refused = server.post(CHAT, SHORT, headers=header(key))
    assert (refused.status_code, refused.headers["x-ratelimit-remaining-requests"]) == (429, "0")
    assert 1 <= int(refused.headers["retry-after"]) <= 40
    with pytest.raises(openai.RateLimitError) as error:
        server.client(key).chat.completions.create(**SHORT)
    assert error.value.code == "rate_limit_exceeded"
    assert server.get("/v1/models", headers=header(key)).status_code == 200, "these cost nothing"
    assert server.post(CHAT, SHORT, headers=header(other)).status_code == 200
    assert server.post(CHAT, SHORT, headers=header("nobody's")).status_code == 401


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_by_the_minute_are_those_that_were_really_taken(server: Running, key: str, stream: bool) -> None:
    taken: list[int] = []
    allowance = server.gateway.app._app._allowances.of(digest(key))
    take = allowance._tokens.take
    allowance._tokens.take = lambda amount: (taken.append(amount), take(amount))
    told = server.post(CHAT, {**SHORT, "stream": stream}, headers=header(key))
    until(lambda: allowance._tokens.reserved == 0)  # what was set aside is given back at the very end
    last = json.loads(told.text.split("data: ")[-2]) if stream else told.json()
    assert sum(taken) == last["usage"]["thrifty"]["total_tokens"] > SHORT["max_tokens"]


def test_a_key_at_work_leaves_room_for_others(server: Running, key: str, other: str) -> None:
    with streaming(server, key):
        refused = server.post(CHAT, ENDLESS, headers=header(key))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert server.post(CHAT, SHORT, headers=header(other)).status_code == 200


def test_thinking_is_closed_before_a_response_is_cut() -> None:
    told: list[Any] = []

    class Told:
        def finish(self) -> None:
            told.append("finish")

        def cut(self, error: Refusal) -> None:
            told.append(error)

    async def wait() -> None:
        timers = end_within(Told(), 0.02, error)  # type: ignore[arg-type]  # all that it needs of one
        while not all(timer.when() < asyncio.get_running_loop().time() for timer in timers) or len(told) < 2:
            await asyncio.sleep(0.01)

    error = Refusal("too late")
    asyncio.run(wait())
    assert told == ["finish", error]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_is_told_as_far_as_it_goes(server: Running, key: str, stream: bool) -> None:
    seen: list[str] = []

    def cut_once_it_answers(answering: Answering) -> Callable[[], None]:
        """Close the thinking at once, and cut the response when the answer has begun: a deadline of no fixed time."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            if answering.answers[0].text("answer").strip():
                answering.cut(Refusal("too late", 504, DEADLINE))
            elif answering.answers[0].done is None:
                loop.call_later(0.01, look)

        answering.finish()
        look()
        return lambda: seen.append("over")

    class Early(Deadlines):
        def watch(self, answering: Answering) -> Callable[[], None]:
            return cut_once_it_answers(answering)

    before, server.gateway.deadlines = server.gateway.deadlines, Early()
    try:
        told = server.post(CHAT, {**ENDLESS, "stream": stream}, headers=header(key))
    finally:
        server.gateway.deadlines = before
    if stream:
        chunks = [json.loads(line[6:]) for line in told.text.splitlines() if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        finish, usage = chunks[-1]["choices"][0]["finish_reason"], chunks[-1]["usage"]
    else:
        (choice,), usage = told.json()["choices"], told.json()["usage"]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    assert text.strip()
    assert finish == "length"
    assert usage["thrifty"]["exit_reasons"] == ["deadline"]
    assert usage["completion_tokens"] + usage["prompt_tokens"] == usage["thrifty"]["total_tokens"]
    assert usage["completion_tokens"] < ENDLESS["max_tokens"]
    until(lambda: seen == ["over"])


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_too_long_is_told_so(
    server: Running, monkeypatch: pytest.MonkeyPatch, key: str, other: str, stream: bool
) -> None:
    with streaming(server, key, n=2):
        monkeypatch.setattr(server.gateway, "deadlines", Deadlines(first_token=0.1))
        with pytest.raises(openai.APIError) as refused:
            list(server.client(other).chat.completions.create(**ENDLESS, stream=stream))
        assert refused.value.code == "first_token_deadline"
        # it has left the queue, although those before it are still at work
        assert len(server.engine._waiting) == 0
        assert len(server.engine._scheduler.plays) == 2


def test_without_an_answer_in_time_there_is_an_error(
    server: Running, monkeypatch: pytest.MonkeyPatch, key: str, other: str
) -> None:
    with streaming(server, key, n=2):
        monkeypatch.setattr(server.gateway, "deadlines", Deadlines(total=0.1))
        refused = server.post(CHAT, ENDLESS, headers=header(other))
    assert (refused.status_code, refused.json()["error"]["code"]) == (504, "deadline")
