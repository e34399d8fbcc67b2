"""A line for each request: who, what and how much, but nothing that was said, unless the operator wants it."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Running, replay, serving

from thrifty.serve import logs
from thrifty.serve.guard import Door, digest
from thrifty.serve.logs import LOGGERS, configure

SECRET = "my-own-secret"
CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "replay@cap(budget=3)", "messages": [{"role": "user", "content": SECRET}]}
MINE = {"Authorization": "Bearer the-key-itself"}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    configure(stream)
    yield stream
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = replay(**{SECRET.replace(" ", "_"): "<think>a b c d e f</think>g"})
    with serving(model, Door({digest("the-key-itself"): "fred"})) as running:
        yield running


def lines(log: io.StringIO, count: int) -> list[dict[str, Any]]:
    """Return so many lines, the last of which is written just after its response."""
    for _ in range(6_000):
        if len(told := log.getvalue().splitlines()) >= count:
            return [json.loads(line) for line in told]
        time.sleep(0.01)
    raise AssertionError(log.getvalue())


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_line(server: Running, log: io.StringIO, stream: bool) -> None:
    response = server.post(CHAT, {**ASKED, "stream": stream}, headers={**MINE, "X-Request-ID": "request-1"})
    usage = response.json()["usage"] if not stream else json.loads(response.text.split("data: ")[-2])["usage"]
    (line,) = lines(log, 1)
    assert (line["event"], line["key"], line["id"], line["status"]) == ("request", "fred", "request-1", 200)
    assert (line["model"], line["method"], line["stream"]) == ("replay", "cap(budget=3)", stream)
    told = usage["thrifty"]["tokens"]
    assert line["tokens"] == {kind: told[kind] for kind in line["tokens"]}
    assert sum(line["tokens"].values()) == usage["thrifty"]["total_tokens"]
    assert line["exit_reasons"] == usage["thrifty"]["exit_reasons"]
    assert 0 < line["first_token_seconds"] <= line["seconds"]


def test_neither_prompts_nor_keys_nor_what_else_was_sent(server: Running, log: io.StringIO) -> None:
    sent = [
        server.post(CHAT, ASKED, headers=MINE),
        server.post(CHAT, {**ASKED, "stream": True}, headers=MINE),
        server.post(CHAT, {**ASKED, SECRET: 1}, headers=MINE),
        server.post(CHAT, {**ASKED, "model": SECRET}, headers=MINE),
        server.post(CHAT, ASKED, headers={"Authorization": f"Bearer {SECRET}"}),
        server.post(f"/v1/requests/{SECRET}/finish", headers=MINE),
        server.get(f"/{SECRET}?{SECRET}=1", headers={**MINE, "User-Agent": SECRET}),
    ]
    told = lines(log, len(sent))
    assert Counter(line["status"] for line in told) == Counter(response.status_code for response in sent)
    assert {line["code"] for line in told if "code" in line} == {
        response.json()["error"]["code"] for response in sent[2:]
    }
    assert SECRET not in log.getvalue()
    assert "the-key-itself" not in log.getvalue()
    assert digest("the-key-itself") not in log.getvalue()


def test_an_operator_may_want_to_read_along(server: Running, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.gateway, "log_prompts", True)
    answer = server.post(CHAT, ASKED, headers=MINE).json()["choices"][0]["message"]
    (line,) = lines(log, 1)
    assert line["asked"] == [ASKED["messages"]]
    assert line["answered"] == [{"thinking": answer["reasoning_content"], "answer": answer["content"]}]


def test_what_is_asked_all_the_time_is_not_worth_a_line(server: Running, log: io.StringIO) -> None:
    for path in ("/healthz", "/metrics", "/status", "/status.json", "/v1/models"):
        assert server.get(path, headers=MINE).status_code == 200
    (line,) = lines(log, 1)
    assert line["route"] == "/v1/models"


def test_strangers_do_not_choose_the_size_of_the_log(
    server: Running, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thrifty.serve.visits.MOST_REFUSED_LINES", 0)
    assert [server.get("/v1/models").status_code for _ in range(3)] == [401] * 3
    assert server.get("/v1/models", headers=MINE).status_code == 200
    (line,) = lines(log, 1)
    assert (line["status"], line["unlogged"]) == (200, 3)


@pytest.mark.parametrize("prompts", [False, True])
def test_an_exception_does_not_give_a_prompt_away(log: io.StringIO, prompts: bool) -> None:
    configure(log, prompts=prompts)
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        logging.getLogger("thrifty.serve").error("it failed on %s", SECRET, exc_info=error)
    (line,) = lines(log, 1)
    assert line["error"]["type"] == "ValueError"
    assert "test_logs.py" in line["error"]["at"][0]
    assert (SECRET in log.getvalue()) == prompts


def test_requests_can_be_left_out(server: Running, log: io.StringIO) -> None:
    configure(log, requests=False)
    server.get("/v1/models", headers=MINE)
    logging.getLogger("thrifty.serve").error("something else")
    assert [line["event"] for line in lines(log, 1)] == ["something else"]


def test_a_log_that_nobody_reads_holds_nobody_up(
    server: Running, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_LINES", 50)
    monkeypatch.setattr(logs, "LAST_SECONDS", 0.1)
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader, os.fdopen(writing, "w") as writer:
        configure(writer)
        (handler,) = logging.getLogger("thrifty").handlers
        while not handler._dropped:  # the pipe is full, and so is the queue
            assert server.get("/v1/models", headers=MINE).status_code == 200
        logs.flush()
        told = [json.loads(reader.readline())]
        while told[-1]["event"] != "lines were dropped":
            told.append(json.loads(reader.readline()))
        assert told[-1]["dropped"] >= 1
        assert {line["event"] for line in told[:-1]} == {"request"}
        configure(log)
