"""Servers behind the gateway that say what a test tells them to: real ones, on free ports of this machine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from listening import Running, listening

from thrifty.models.client import Patience
from thrifty.serve.app import Gateway
from thrifty.serve.upstream import UpstreamEngine
from thrifty.serve.upstream_client import Upstreams

Reply = Callable[["Handler", dict[str, Any]], None]
SECRET = "sk-upstream-secret-0123456789"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Scripted

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.paths.append(self.path)
            self.server.keys.append(self.headers.get("authorization"))
            script = self.server.script
            reply = script.pop(0) if len(script) > 1 else script[0]
        try:
            reply(self, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            self.server.hung_up.release()

    def begin(self, status: int, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True


class Scripted(ThreadingHTTPServer):
    """Answers each request with the next reply of its script, the last one for ever."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *script: Reply) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.script = list(script)
        self.hung_up = threading.Semaphore(0)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


def sse(*events: Any, end: bytes = b"data: [DONE]\n\n", size: int = 0) -> Reply:
    """Stream events, a write each, or in writes of some bytes."""

    def reply(handler: Handler, _: dict[str, Any]) -> None:
        handler.begin(200, "text/event-stream")
        parts = [f"data: {json.dumps(event)}\n\n".encode() for event in events] + [end]
        data = b"".join(parts)
        for part in [data[i : i + size] for i in range(0, len(data), size)] if size else parts:
            handler.wfile.write(part)

    return reply


def delta(content: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content, **more}, "finish_reason": finish}]}


def counts(prompt: int, completion: int, reasoning: int | None = None) -> dict[str, Any]:
    details = {} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **details}}


def says(
    text: str, reasoning: str = "", finish: str = "stop", usage: Any = "tokens", step: int = 3, size: int = 0
) -> Reply:
    """Stream a text and a reasoning in deltas of some characters, each of which counts as a token."""
    thoughts = [reasoning[i : i + step] for i in range(0, len(reasoning), step)]
    pieces = [text[i : i + step] for i in range(0, len(text), step)]
    events = [delta(None, role="assistant"), *(delta(None, reasoning_content=t) for t in thoughts)]
    events += [*(delta(p) for p in pieces), delta(finish=finish)]
    if usage == "tokens":
        usage = counts(7, len(thoughts) + len(pieces), len(thoughts) if reasoning else None)
    return sse(*events, *([usage] if usage else []), size=size)


def endless(text: str = "", reasoning: str = "") -> Reply:
    """Stream the same delta until the client hangs up."""

    def reply(handler: Handler, _: dict[str, Any]) -> None:
        handler.begin(200, "text/event-stream")
        event = delta(text or None, **({"reasoning_content": reasoning} if reasoning else {}))
        while True:
            handler.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    return reply


def fails(status: int, body: bytes = b'{"error": {"message": "no luck"}}', **headers: str) -> Reply:
    def reply(handler: Handler, _: dict[str, Any]) -> None:
        handler.begin(status, "application/json", **headers)
        handler.wfile.write(body)

    return reply


def fails_for_ever(handler: Handler, _: dict[str, Any]) -> None:
    """An error whose body never ends."""
    handler.begin(500, "text/html")
    while True:
        handler.wfile.write(b"<p>all is lost</p>" * 1000)


def drops(handler: Handler, _: dict[str, Any]) -> None:
    """Break off in the middle of an answer."""
    handler.begin(200, "text/event-stream")
    handler.wfile.write(b"data: " + json.dumps(delta("The answer")).encode() + b"\n\n")


def hangs(handler: Handler, _: dict[str, Any]) -> None:
    """Say nothing until the client goes."""
    handler.close_connection = True
    handler.connection.settimeout(60)
    try:
        handler.connection.recv(1)
    except OSError:
        return
    handler.server.hung_up.release()


def answers_whole(text: str) -> Reply:
    """Answer a request for a stream with a whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return fails(200, json.dumps({"choices": [choice], "usage": counts(7, 2)["usage"]}).encode())


def nobody() -> str:
    """Return the URL of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


@contextmanager
def scripted(*script: Reply) -> Iterator[Scripted]:
    """Run a server while the context is open."""
    server = Scripted(*script)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def before(*urls: str, key: str = "", patience: Patience | None = None, **options: Any) -> Iterator[Running]:
    """Run a gateway before some servers while the context is open; the options are those of the engine."""
    patience = patience or Patience(timeout=30.0, retries=1, backoff=0.01)
    engine = UpstreamEngine(Upstreams(urls, [key] * len(urls), patience), {"tiny": None}, **options)
    with listening(Gateway(engine)) as running:
        yield running
