"""A gateway on a free port of this machine while a test runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from thrifty.serve.app import Gateway
from thrifty.serve.server import Server


@dataclass
class Running:
    """A server at work, and how to talk to it."""

    gateway: Gateway
    engine: Any
    address: str
    server: Server
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=600, verify=False))
    """Shared by all requests: to make one takes longer than to answer."""

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, http_client=self.http)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.http.post(self.address + path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(self.address + path, **options)


@contextmanager
def listening(gateway: Gateway) -> Iterator[Running]:
    """Serve a gateway while the context is open."""
    ready = threading.Event()
    server = Server(gateway, port=0, graceful_seconds=5, ready=lambda _: ready.set())
    thread = threading.Thread(target=server.listen, daemon=True)
    thread.start()
    assert ready.wait(300)
    running = Running(gateway, gateway.engine, server.address, server)
    try:
        yield running
    finally:
        running.http.close()
        server.should_exit = True
        thread.join(300)
        assert not thread.is_alive()
