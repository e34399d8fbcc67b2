"""What the gateway adds to a call: the same scripted server asked directly, through thrifty, and through optillm.

All are asked in turn, round after round, so that a machine whose speed drifts favours nobody. The latency is that of
whole answers, one after the other; the rate that of 32 clients at a time. Ends with one JSON line.

    python benchmarks/gateway.py
    python benchmarks/gateway.py --optillm 'ENV/bin/optillm --base-url {upstream} --port {port} --approach none'
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlparse

EVENTS = 20
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n\r\n"


def answers() -> tuple[bytes, bytes]:
    """Return the whole answer and the stream of the scripted server."""
    base = {"id": "x", "created": 1, "model": "scripted"}
    usage = {"prompt_tokens": 9, "completion_tokens": EVENTS, "total_tokens": 9 + EVENTS}
    choice = {"index": 0, "message": {"role": "assistant", "content": "word " * EVENTS}, "finish_reason": "stop"}
    whole = json.dumps({**base, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    chunk = {**base, "object": "chat.completion.chunk"}
    told = [{**chunk, "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}] * EVENTS
    told += [{**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    told += [{**chunk, "choices": [], "usage": usage}]
    return whole, b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in told) + b"data: [DONE]\n\n"


async def serve(port: int) -> None:
    """Answer everything at once."""
    whole, stream = answers()
    one = HEAD % (b"application/json", b"content-length: %d" % len(whole)) + whole
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(stream), stream)
    many = HEAD % (b"text/event-stream", b"transfer-encoding: chunked") + chunks
    listed = json.dumps({"object": "list", "data": [{"id": "scripted", "object": "model"}]}).encode()
    models = HEAD % (b"application/json", b"content-length: %d" % len(listed)) + listed

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = next((int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0)
                body = await reader.readexactly(size)
                streamed = b'"stream":true' in body.replace(b" ", b"")
                writer.write(models if head.startswith(b"GET") else many if streamed else one)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", port) as server:
        await server.serve_forever()


class Line:
    """One connection that is kept open."""

    def __init__(self, url: str, key: str = "none") -> None:
        self.address = urlparse(url)
        body = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "1 + 1"}]}).encode()
        head = f"POST {self.address.path}/chat/completions HTTP/1.1\r\nhost: {self.address.netloc}\r\n"
        head += f"authorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        """Ask once and read the whole answer."""
        for fresh in (False, True):  # a server may have closed the connection meanwhile
            if self.streams is None or fresh:
                self.streams = await asyncio.open_connection(self.address.hostname, self.address.port)
            reader, writer = self.streams
            try:
                writer.write(self.request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                break
            except (asyncio.IncompleteReadError, ConnectionError):
                if fresh:
                    raise
        if not head.startswith((b"http/1.1 200", b"http/1.0 200")):
            raise SystemExit(f"{self.address.netloc} answered {head[:80]!r}")
        size = next(int(h[15:]) for h in head.split(b"\r\n") if h.startswith(b"content-length:"))
        answer = json.loads(await reader.readexactly(size))
        assert answer["choices"][0]["message"]["content"].startswith("word word")
        if b"connection: close" in head or head.startswith(b"http/1.0"):
            writer.close()
            self.streams = None


async def latency(url: str, calls: int) -> list[float]:
    """Return the seconds of calls, one after the other."""
    line, found = Line(url), []
    for _ in range(calls):
        began = time.perf_counter()
        await line.ask()
        found.append(time.perf_counter() - began)
    return found


async def rate(url: str, calls: int, clients: int) -> float:
    """Return the requests per second of clients side by side."""
    left = iter(range(calls))

    async def client() -> None:
        line = Line(url)
        for _ in left:
            await line.ask()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return calls / (time.perf_counter() - began)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(stack: ExitStack, command: Sequence[str], port: int) -> None:
    """Run a server until the benchmark ends, and wait for it to listen."""
    keys = {"OPENAI_API_KEY": "none", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env={**os.environ, **keys}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    for _ in range(3000):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.2)
    raise SystemExit(f"this did not begin to listen: {shlex.join(command)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--optillm", default="", help="its command, with {upstream} and {port} where they belong")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=200, help="in each round, for each way")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--scripted", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scripted:
        asyncio.run(serve(options.scripted))
        return
    with ExitStack() as stack:
        port = free_port()
        start(stack, [sys.executable, __file__, "--scripted", str(port)], port)
        upstream = f"http://127.0.0.1:{port}/v1"
        ways = {"direct": upstream}
        port = free_port()
        serving = [
            sys.executable,
            "-m",
            "thrifty.cli",
            "serve",
            "--upstream",
            upstream,
            "--port",
            str(port),
            "--no-log",
        ]
        start(stack, serving, port)
        ways["thrifty"] = f"http://127.0.0.1:{port}/v1"
        if options.optillm:
            port = free_port()
            start(stack, shlex.split(options.optillm.format(upstream=upstream, port=port)), port)
            ways["optillm"] = f"http://127.0.0.1:{port}/v1"
        print(json.dumps(measured(ways, options.rounds, options.calls, options.clients)))


def measured(ways: dict[str, str], rounds: int, calls: int, clients: int) -> dict[str, Any]:
    """Ask in all ways by turns, print a line for each, and return what to keep."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for url in ways.values():
        asyncio.run(latency(url, 10))  # what is only done once
    for _ in range(rounds):
        for name, url in ways.items():
            seconds[name] += asyncio.run(latency(url, calls))
        for name, url in ways.items():
            rates[name].append(asyncio.run(rate(url, calls, clients)))
    median = {name: statistics.median(found) for name, found in seconds.items()}
    for name in ways:
        added = (median[name] - median["direct"]) * 1000
        print(
            f"{name:8} {median[name] * 1000:8.2f} ms  +{added:.2f} ms  {statistics.median(rates[name]):8.0f} requests/s"
        )
    return {
        "rounds": rounds,
        "calls": calls,
        "clients": clients,
        "median_ms": {name: round(value * 1000, 3) for name, value in median.items()},
        "requests_per_second": {name: round(statistics.median(found), 1) for name, found in rates.items()},
    }


if __name__ == "__main__":
    main()
