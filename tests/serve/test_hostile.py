"""Clients that mean no good, or do not know better: one clear refusal, no stall, nothing left behind."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import Running, Wordy, serving, until

from thrifty.serve.guard import Door
from thrifty.serve.openapi import describe
from thrifty.serve.shapes import encoded, sse

ASKED: dict[str, Any] = {"model": "wordy", "messages": [{"role": "user", "content": "1 + 1"}], "max_tokens": 4}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Wordy.make(), Door(max_body=1 << 20, body_seconds=1.0), slots=8, max_tokens=24) as running:
        yield running


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error  # type: ignore[no-any-return]  # it comes from JSON


MISTAKES: dict[str, tuple[dict[str, Any], int, str]] = {
    "a field of thrifty outside of it": ({"budget": 3}, 400, "belongs in `thrifty`"),
    "a field of others": ({"thinking_budget": 3}, 400, '{"thrifty": {"budget": 200}}'),
    "an outer field inside": ({"thrifty": {"temperature": 1}}, 400, "at the top of the body"),
    "extra_body taken literally": ({"extra_body": {}}, 400, "Python client"),
    "a field that nobody knows": ({"colour": "red"}, 400, "not known here"),
    "no such model": ({"model": "gpt-9"}, 404, "unknown model"),
    "no such method": ({"model": "wordy@frist-try"}, 400, "Did you mean first-try"),
    "a method twice": ({"model": "wordy@cap", "thrifty": {"method": "cap"}}, 400, "give one of them"),
    "params without a method": ({"thrifty": {"params": {"budget": 3}}}, 400, "thrifty.method"),
    "an option that it does not have": ({"thrifty": {"method": "cap", "params": {"bugdet": 3}}}, 400, "no option"),
    "a file of the server": ({"model": "wordy@cgrs(calibration='/etc/passwd')"}, 400, "--offer"),
    "a model to load": ({"thrifty": {"method": "thoughtmani", "params": {"helper": "gpt2"}}}, 400, "--offer"),
    "code to run": ({"model": "wordy@arm"}, 400, "runs code"),
    "a million samples": ({"model": "wordy@majority(samples=1000000)"}, 400, "at most"),
    "a method that decodes for itself": ({"model": "wordy@group-think"}, 400, "thrifty ask"),
    "effort and budget": ({"reasoning_effort": "low", "thrifty": {"budget": 3}}, 400, "give one of them"),
    "no such effort": ({"reasoning_effort": "hihg"}, 400, "Did you mean high"),
    "two limits": ({"max_completion_tokens": 5}, 400, "differ"),
    "a million tokens": ({"max_tokens": 1_000_000}, 400, "24 at the most"),
    "JSON mode": ({"response_format": {"type": "json_object"}}, 400, "--upstream"),
    "tools": ({"tools": [{"type": "function"}]}, 400, "--upstream"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
    "logprobs of a vote": ({"model": "wordy@majority", "logprobs": True}, 400, "no logprobs"),
    "a prompt beyond the context": ({"messages": [{"role": "user", "content": "1 " * 9999}]}, 400, "context"),
    "too many samples": ({"n": 1000}, 400, "n: "),
    "a number in quotes": ({"temperature": "1"}, 400, "temperature"),
    "an endless stop list": ({"stop": ["a"] * 99}, 400, "stop"),
    "the assistant's turn": ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "/v1/completions"),
    "nothing but unknown fields": ({f"x{number}": 1 for number in range(20_000)}, 400, "too much of the body"),
    "too many params": ({"thrifty": {"params": {f"x{n}": {} for n in range(9999)}}}, 400, "params: at most 32 options"),
    "a biased vocabulary": ({"logit_bias": {str(n): 1 for n in range(9999)}}, 400, "at most 1024"),
    "messages that are none": ({"messages": [{}] * 9999}, 400, "'messages.0.role' is missing"),
    "stream options without a stream": ({"stream_options": {"include_usage": True}}, 400, "stream"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_that_says_what_is_right(server: Running, name: str) -> None:
    body, status, said = MISTAKES[name]
    response = server.post(CHAT, {**ASKED, **body})
    assert (response.status_code, said in error_of(response)["message"]) == (status, True), response.text


def asking(question: str) -> bytes:
    return json.dumps({**ASKED, "messages": [{"role": "user", "content": question}]}).encode()


BYTES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "no JSON": (b"{", 400),
    "deep JSON": (b"[" * 100_000, 400),
    "deep fields": (b'{"a":' * 100_000, 400),
    "not a number": (json.dumps({**ASKED, "temperature": float("nan")}).encode(), 400),
    "half a character": (b'{"model":"wordy","messages":[{"role":"user","content":"\\ud800"}]}', 400),
    "no UTF-8": (b'{"model":"\xff\xfe"}', 400),
    "a NUL": (asking("a\0b"), 200),
    "control tokens": (asking("<|end|><|assistant|><think>"), 200),
    "a huge number": (b'{"seed":1' + b"0" * 4000 + b"}", 400),
    "too large": (b" " * (1 << 21), 413),
}


@pytest.mark.parametrize("name", BYTES)
def test_bodies_that_are_none(server: Running, name: str) -> None:
    body, status = BYTES[name]
    response = server.post(CHAT, headers={"content-type": "application/json"}, content=body)
    assert response.status_code == status
    if status != 200:
        error_of(response)


def test_only_json_is_taken_for_json(server: Running) -> None:
    response = httpx.post(server.address + CHAT, content=json.dumps(ASKED), timeout=600)
    assert response.status_code == 415
    assert "Content-Type" in error_of(response)["message"]


def raw(server: Running, *parts: bytes) -> bytes:
    """Send bytes as they are and return all that comes back until the server closes."""
    address = urlparse(server.address)
    with socket.create_connection((address.hostname, address.port), timeout=120) as connection:
        for part in parts:
            connection.sendall(part)
        told = b""
        while chunk := connection.recv(1 << 16):
            told += chunk
    return told


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
)


def test_a_body_that_does_not_come_is_not_waited_for(server: Running) -> None:
    told = raw(server, HEAD + b"Content-Length: 100\r\n\r\n", b'{"model"')
    assert told.startswith(b"HTTP/1.1 408 ")


def test_a_chunked_body_without_end_is_cut(server: Running) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    try:
        told = raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 40)
    except ConnectionError:  # it closes while more is being sent
        return
    assert told.startswith(b"HTTP/1.1 413 ")


def test_headers_without_end_are_cut(server: Running) -> None:
    try:
        told = raw(server, b"GET /healthz HTTP/1.1\r\n", *[b"X-Long: " + b"a" * 65_000 + b"\r\n"] * 10)
    except ConnectionError:
        return
    assert told.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "line",
    [
        b"GET /v1/models/../../etc/passwd HTTP/1.1",
        b"GET /v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1",
        b"GET /v1/models/%00 HTTP/1.1",
        b"GET //v1/models HTTP/1.1",
        b"GET /v1/models/%ff%fe HTTP/1.1",
        b"DELETE /v1/models HTTP/1.1",
        b"GET /v1/requests/x/finish HTTP/1.1",
    ],
)
def test_tricks_with_paths(server: Running, line: bytes) -> None:
    told = raw(server, line + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert told.split(b" ", 2)[1] in (b"400", b"404", b"405"), told[:200]


@pytest.mark.parametrize("id", ["a\r\nX-Evil: 1", "a b", "x" * 65, "short", "<script>"])
def test_nothing_of_a_client_gets_into_headers(server: Running, id: str) -> None:
    encoded = id.encode().replace(b"\r\n", b"\n ")  # a folded header is the most that gets through
    body = json.dumps(ASKED).encode()
    told = raw(server, HEAD + b"X-Request-ID: %s\r\nContent-Length: %d\r\n\r\n" % (encoded, len(body)), body)
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"x-evil" not in told.partition(b"\r\n\r\n")[0].lower()


def test_pages_of_other_sites_are_kept_out(server: Running) -> None:
    response = server.get("/v1/models", headers={"host": "evil.example:8000"})
    assert response.status_code == 403
    assert "localhost" in error_of(response)["message"]


def test_half_a_character_of_a_server_does_not_break_an_answer() -> None:
    assert encoded({"content": "a\ud800b"}) == b'{"content": "a?b"}'
    assert sse({"content": "a\ud800b"}) == b'data: {"content":"a?b"}\n\n'


def test_an_error_repeats_no_prompt(server: Running) -> None:
    secret = "my-own-secret"
    for body in (
        {**ASKED, "messages": [{"role": "usr", "content": secret}]},
        {**ASKED, "messages": secret},
        {**ASKED, "messages": [{"role": "user", "content": secret * 4000}]},
    ):
        response = server.post(CHAT, body)
        assert response.status_code == 400
        assert secret not in response.text


def test_after_all_that_it_answers_as_before(server: Running) -> None:
    assert server.post(CHAT, ASKED).json()["choices"][0]["message"]["content"]
    until(lambda: not server.gateway._running)  # a request is forgotten behind its last byte


schema = schemathesis.openapi.from_dict(describe())
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


@schema.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_description_holds_for_whatever_is_sent(case: Any, server: Running) -> None:
    response = case.call(base_url=server.address, timeout=600)
    case.validate_response(response, checks=CHECKS)
