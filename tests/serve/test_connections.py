"""Connections of strangers: none is held for ever, none makes the server keep what nobody has asked for."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import pytest
from serving import Running, Wordy, serving, until

from thrifty.serve import server as served
from thrifty.serve.guard import Door, digest

MINE = {"Authorization": "Bearer mine"}
CHAT = "/v1/chat/completions"
ENDLESS: dict[str, Any] = {
    "model": "wordy",
    "messages": [{"role": "user", "content": "1 + 1"}],
    "max_tokens": 20_000,
    "temperature": 2.0,
    "stream": True,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = Wordy.make()
    model.context_length = 1 << 15
    with serving(model, Door({digest("mine"): "mine"}), slots=4) as running:
        yield running


@contextlib.contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    address = urlparse(server.address)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        yield connection


def request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer mine\r\n"
    return head.encode() + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def rest(connection: socket.socket) -> bytes:
    """Return what still comes until the server ends the connection, and fail if it does not."""
    told = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(1 << 16):
            told += chunk
    return told


STRANGERS = {
    "a blank line behind an answer": (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n"),
    "a bit of a body behind the answer": (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
        b"x",
    ),
    "half a head behind an answer": (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /v1/mod"),
    "half a head": (b"", b"GET /v1/mod"),
    "nothing": (b"", b""),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_connection_on_which_nothing_is_asked_ends(
    server: Running, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(served, "HEAD_SECONDS", 0.2)
    asked, then = STRANGERS[name]
    with connected(server) as connection:
        if asked:
            connection.sendall(asked)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 401 ")
        connection.sendall(then)
        assert rest(connection) == b""


def test_requests_that_wait_for_an_answer_before_the_next_share_a_connection(server: Running) -> None:
    address = urlparse(server.address)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    connection.connect()
    connection.auto_open = 0
    for _ in range(50):
        for verb, path, status in (("GET", "/healthz", 200), ("POST", CHAT, 400), ("POST", "/v1/models", 405)):
            connection.request(verb, path, "{}", {**MINE, "Content-Type": "application/json"})
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (status, True)
    connection.close()


def test_requests_that_do_not_wait_end_the_connection_and_are_not_kept(server: Running) -> None:
    with connected(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5000)
        assert rest(connection).count(b"HTTP/1.1") <= 1


def test_a_request_sent_ahead_does_not_hide_that_the_client_is_gone(server: Running) -> None:
    with connected(server) as connection:
        connection.sendall(request(ENDLESS))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        rest(connection)
    until(lambda: not server.gateway._running and not server.engine._scheduler.plays)


@pytest.mark.parametrize("path", ["/healthz", CHAT])
def test_headers_behind_a_body_are_not_collected(server: Running, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer mine\r\n".encode()
    with connected(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
            for _ in range(1000):
                connection.sendall(b"a: b\r\n" * 1000)
        told = rest(connection)
    assert b" 200 " not in told.partition(b"\r\n")[0]


def test_a_stranger_can_leave_no_body(server: Running) -> None:
    response = server.post("/healthz", content=b"x" * 1000)
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert server.get("/healthz").status_code == 200


@pytest.mark.parametrize("closing", [False, True])
def test_a_client_that_stops_reading_is_gone(server: Running, monkeypatch: pytest.MonkeyPatch, closing: bool) -> None:
    monkeypatch.setattr(served, "STALLED_SECONDS", 0.5)
    until(lambda: not server.server.server_state.tasks)
    before = set(server.server.server_state.connections)
    with connected(server) as connection:
        until(lambda: len(server.server.server_state.connections - before) == 1)
        (held,) = server.server.server_state.connections - before
        while not (held.flow.write_paused or (closing and held.transport.get_write_buffer_size())):
            last = held.cycle
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer mine\r\n\r\n")
            until(functools.partial(_ended, held, last))
        if closing:
            connection.sendall(b"no HTTP\r\n\r\n")
        until(lambda: held not in server.server.server_state.connections)
        until(lambda: not server.server.server_state.tasks and not server.gateway._running)


def _ended(held: Any, last: Any) -> bool:
    """Tell whether a connection has answered what came last, or waits for its client to read."""
    return held.flow.write_paused or (held.cycle is not last and held.cycle.response_complete)
