"""The end of the server: nothing new is taken, and what is at work gets an end that its client can read."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any

import httpx
import pytest
from serving import Running, Wordy, serving, until

from thrifty.serve import deadlines

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "model": "wordy",
    "messages": [{"role": "user", "content": "1 + 1"}],
    "max_tokens": 20_000,
    "temperature": 2.0,
}


def stop(server: Running, seconds: float) -> None:
    """Stop taking requests, as the server does when it is told to end."""
    stopped = threading.Event()

    def on_the_loop() -> None:
        server.gateway.stop(seconds)
        stopped.set()

    (answering, *_) = server.gateway._running.values()
    answering._streams[0].loop.call_soon_threadsafe(on_the_loop)
    assert stopped.wait(60)


def chunks(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.fixture
def server() -> Any:
    model = Wordy.make()
    model.context_length = 1 << 15
    with serving(model, slots=2) as running:
        yield running


def test_what_is_at_work_ends_and_nothing_new_begins(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[httpx.Response] = []
    asking = [
        threading.Thread(target=lambda stream=stream: found.append(server.post(CHAT, {**ASKED, "stream": stream})))
        for stream in (True, False)
    ]
    waiting = threading.Thread(target=lambda: found.append(server.post(CHAT, {**ASKED, "user": "the third"})))
    for thread in asking:
        thread.start()
    until(lambda: len(server.engine._scheduler.plays) == 2)
    waiting.start()
    until(lambda: len(server.engine._waiting) == 1)
    monkeypatch.setattr(deadlines, "THINKING_SHARE", 0.0)
    answerings = list({id(one): one for one in server.gateway._running.values()}.values())
    stop(server, 3000.0)
    refused = server.post(CHAT, ASKED)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert int(refused.headers["retry-after"]) >= 1
    until(lambda: sum(bool(one.answers[0].text("answer").strip()) for one in answerings) == 2)
    stop(server, 0.0)
    for thread in (*asking, waiting):
        thread.join(300)
    assert sorted(response.status_code for response in found) == [200, 200, 503], "the third never had its turn"
    for response in found:
        if response.headers["content-type"].startswith("text/event-stream"):
            told = chunks(response.text)
            text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in told)
            finish, usage = told[-1]["choices"][0]["finish_reason"], told[-1]["usage"]
            assert response.text.endswith("data: [DONE]\n\n")
        elif response.status_code == 200:
            (choice,), usage = response.json()["choices"], response.json()["usage"]
            text, finish = choice["message"]["content"], choice["finish_reason"]
        else:
            assert response.json()["error"]["code"] == "shutting_down"
            continue
        assert text.strip(), "its thinking was closed in time"
        assert finish == "length"
        assert usage["thrifty"]["exit_reasons"] == ["shutting_down"]


def test_a_signal_ends_a_stream_with_its_last_chunk() -> None:
    command = [sys.executable, "-m", "thrifty.cli", "serve", "--port", "0", "--grace", "600", "--slots", "1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        (address,) = re.findall(r"http://\S+?(?=/v1)", process.stderr.readline())
        body = {"model": "pebble", "messages": [{"role": "user", "content": "12 + 34"}], "stream": True}
        with httpx.stream("POST", address + CHAT, json={**body, "max_tokens": 120}, timeout=600) as response:
            lines = response.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            text = "\n".join([first, *lines])
        assert process.wait(600) in (0, -signal.SIGTERM)
        assert text.rstrip().endswith("data: [DONE]")
        assert chunks(text)[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        (line,) = map(json.loads, process.stdout)
        assert (line["event"], line["status"]) == ("request", 200)
        assert "Traceback" not in process.stderr.read()
