"""The gateway under load: ``python benchmarks/load.py --clients 64 --seconds 60``.

Streaming clients ask a server of its own process, each request with a seed of its own. Every response is compared with
what the same method gives offline for that seed. Then the same work is done again and again: alone, beside requests
that are refused (an unknown key, a body that is too large, a broken one), and beside the same requests to another
process, which tells what sending them takes of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlparse

import httpx

if TYPE_CHECKING:
    from thrifty.traces.trace import Problem

KEY = "benchmark"
CHAT = "/v1/chat/completions"
MOST_BODY = 1 << 16
SENDERS = 16
"""Connections that requests to be refused come over."""


@dataclass(frozen=True)
class Question:
    """What is asked: a problem, its seed and the texts that it must come back with."""

    problem: Problem
    seed: int
    thinking: str
    answer: str


@dataclass
class Counts:
    """What came of the requests of one phase.

    Attributes:
        responses: complete ones, by client.
        characters: that came within the time of the phase, by client.
        tokens: that the complete ones have.
        first: seconds until the first text of each.
        wrong: descriptions of responses that are not what they should be.
        refused: statuses of requests that had to be refused.
        seconds: that the phase took.
        rejected_rate: requests a second that were refused.
    """

    responses: Counter[int] = field(default_factory=Counter)
    characters: Counter[int] = field(default_factory=Counter)
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    rejected_rate: float = 0.0


def offline(args: argparse.Namespace) -> list[Question]:
    """Answer every question without a server."""
    from thrifty.methods import get_method
    from thrifty.models import load_model
    from thrifty.models.base import Job, Settings
    from thrifty.models.torch import TorchModel
    from thrifty.serve.shown import Shown
    from thrifty.tasks import load_task

    model = load_model(args.model, dtype=args.dtype)
    assert isinstance(model, TorchModel), "the server runs it itself"
    method = get_method(args.method)
    found = []
    for seed, problem in enumerate(load_task(args.task).problems(args.questions)):
        settings = Settings(max_tokens=args.max_tokens, temperature=args.temperature, seed=seed)
        # draws depend on the name of a problem, and the server calls every one the same
        (trace,) = method.solve(model, [Job(replace(problem, id="question"), 0)], settings)
        texts, filtered = {"thinking": "", "answer": ""}, Shown(model)
        shown = [filtered.feed(s.phase, s.ids) for s in trace.segments if s.kind not in ("probe", "helper")]
        for piece in [piece for pieces in shown for piece in pieces] + filtered.end():
            texts[piece.channel] += piece.text
        found.append(Question(problem, seed, texts["thinking"], texts["answer"]))
    return found


def body(args: argparse.Namespace, question: Question) -> dict[str, Any]:
    return {
        "model": f"{args.model}@{args.method}",
        "messages": list(question.problem.messages),
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "seed": question.seed,
        "stream": True,
    }


async def ask(
    client: httpx.AsyncClient, args: argparse.Namespace, question: Question, me: int, counts: Counts, until: float
) -> None:
    """Ask a question and compare what comes."""
    told = {"reasoning_content": "", "content": ""}
    began, usage = time.perf_counter(), None
    async with client.stream("POST", CHAT, json=body(args, question)) as response:
        if response.status_code != 200:
            counts.wrong.append(f"status {response.status_code}")
            return
        first = True
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                counts.wrong.append(chunk["error"]["code"])
                return
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                for part in told:
                    text = choice["delta"].get(part) or ""
                    told[part] += text
                    counts.characters[me] += len(text) if time.perf_counter() < until else 0
            if first and any(told.values()):
                counts.first.append(time.perf_counter() - began)
                first = False
    if usage is None:
        counts.wrong.append("no last chunk")
    elif (told["reasoning_content"], told["content"]) != (question.thinking, question.answer):
        counts.wrong.append(f"seed {question.seed}: another text than offline")
    else:
        counts.responses[me] += 1
        counts.tokens += usage["completion_tokens"]


def to_be_refused(address: str) -> list[tuple[bytes, int]]:
    """Return requests that must be refused, with the status that is due."""

    def request(key: str, content: bytes) -> bytes:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {urlparse(address).netloc}\r\nauthorization: Bearer {key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        return head.encode() + content

    return [
        (request("wrong", b"{}"), 401),
        (request(KEY, b" " * (MOST_BODY + 1)), 413),
        (request(KEY, b"[" * 999), 400),
    ]


def refuse(address: str, rate: float, stop: Event) -> Counter[int]:
    """Send what must be refused over one connection, so often a second; who is late catches up, as far as it can.

    Returns:
        How often each status came, below zero where another was due.
    """
    statuses, place = Counter[int](), urlparse(address)
    kinds = itertools.cycle(to_be_refused(address))
    with ExitStack() as stack:
        line = None
        began = time.perf_counter()
        for number in itertools.count():
            time.sleep(max(0.0, began + number / rate - time.perf_counter()))
            if stop.is_set():
                break
            if line is None:
                line = stack.enter_context(socket.create_connection((place.hostname, place.port)))
            content, due = next(kinds)
            line.sendall(content)
            head, _, body = line.recv(1 << 16).partition(b"\r\n\r\n")
            length, status = int(re.findall(rb"(?i)content-length: (\d+)", head)[0]), int(head[9:12])
            while len(body) < length:
                body += line.recv(1 << 16)
            statuses[status if status == due else -status] += 1
            if b"connection: close" in head.lower():
                stack.close()
                line = None
    return statuses


def refuse_all(address: str, rejected: float) -> None:
    """Send what must be refused, over all connections, until something stands in stdin; then tell the counts."""
    stop, began = Event(), time.perf_counter()
    with ThreadPoolExecutor(SENDERS) as pool:
        sent = [pool.submit(refuse, address, rejected / SENDERS, stop) for _ in range(SENDERS)]
        sys.stdin.readline()
        stop.set()
        statuses = sum((one.result() for one in sent), Counter[int]())
    print(json.dumps({**statuses, "rate": statuses.total() / (time.perf_counter() - began)}))


class Elsewhere(asyncio.Protocol):
    """Refuses what has to be refused without looking: what is sent here takes the machine's time, not the gateway's."""

    def __init__(self) -> None:
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        size = int(head.rpartition(b" ")[2]) if end else 0
        if end and len(body) >= size:
            self._read = b""
            status = b"401" if b"Bearer wrong" in head else b"413" if size > MOST_BODY else b"400"
            self._transport.write(b"HTTP/1.1 %s X\r\ncontent-length: 2\r\n\r\n{}" % status)


async def elsewhere() -> None:
    """Listen, and say where."""
    server = await asyncio.get_running_loop().create_server(Elsewhere, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def phase(
    address: str, args: argparse.Namespace, questions: list[Question], seconds: float, each: int, refusing: str = ""
) -> Counts:
    """Ask from many clients at once.

    Args:
        address: of the server.
        args: options.
        questions: what is asked.
        seconds: after which no client asks again.
        each: questions after which a client asks no more.
        refusing: address of what refuses requests beside them, empty for none.
    """
    counts, began = Counts(), time.perf_counter()
    options: dict[str, Any] = {
        "base_url": address,
        "headers": {"authorization": f"Bearer {KEY}"},
        "timeout": 600,
        "limits": httpx.Limits(max_connections=None),
        "trust_env": False,
    }

    async def keep_asking(me: int) -> None:
        for number in range(me, me + each):
            if time.perf_counter() >= began + seconds:
                break
            await ask(client, args, questions[number % len(questions)], me, counts, began + seconds)

    command = [sys.executable, __file__, "--refuse", refusing, "--rejected", str(args.rejected)]
    sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) if refusing else None
    if sender is not None:
        await asyncio.sleep(1)  # so that it has begun
        began = time.perf_counter()
    async with httpx.AsyncClient(**options) as client:
        await asyncio.gather(*(keep_asking(me) for me in range(args.clients)))
    counts.seconds = time.perf_counter() - began
    if sender is not None:
        told = json.loads(sender.communicate(b"stop")[0])
        counts.rejected_rate = told.pop("rate")
        statuses = {int(status): count for status, count in told.items()}
        counts.refused.update({status: count for status, count in statuses.items() if status > 0})
        counts.wrong += [f"status {-status} where another was due" for status in statuses if status < 0]
    return counts


def fairness(counts: Counts, clients: int) -> float:
    """Return Jain's index of what each client got: 1 where all got the same."""
    got = [counts.characters[me] for me in range(clients)]
    return sum(got) ** 2 / (clients * sum(value**2 for value in got)) if any(got) else 0.0


async def measure(address: str, args: argparse.Namespace, questions: list[Question]) -> dict[str, Any]:
    load = await phase(address, args, questions, args.seconds, 10**9)
    found: dict[str, Any] = {
        "responses": sum(load.responses.values()),
        "tokens_per_second": round(load.tokens / args.seconds, 1),
        "first_token_median": round(statistics.median(load.first), 4) if load.first else None,
        "fairness": round(fairness(load, args.clients), 4),
        "least_and_most_of_a_client": [pick(load.characters[me] for me in range(args.clients)) for pick in (min, max)],
        "wrong": load.wrong,
    }
    with subprocess.Popen([sys.executable, __file__, "--elsewhere"], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        ways = {"alone": "", "elsewhere": other.stdout.readline().strip(), "refused": address}
        times: dict[str, list[float]] = {way: [] for way in ways}
        refused, rates = Counter[int](), list[float]()
        for number in range(args.rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                counts = await phase(address, args, questions, 600, args.each, ways[way])
                times[way].append(counts.seconds)
                found["wrong"] += counts.wrong
                if way == "refused":
                    refused += counts.refused
                    rates.append(counts.rejected_rate)
        other.terminate()
    found["refused_per_second"] = round(statistics.mean(rates), 1)
    found["refused"] = dict(refused)
    found["seconds"] = {way: [round(seconds, 2) for seconds in its] for way, its in times.items()}
    median = {way: statistics.median(its) for way, its in times.items()}
    found["slowdown"] = {way: round(1 - median["alone"] / median[way], 4) for way in ("elsewhere", "refused")}
    found["slowdown_by_refusing"] = round(1 - median["elsewhere"] / median["refused"], 4)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--dtype", default="float64", help="in float64 no batch changes a token")
    parser.add_argument("--method", default="cap(budget=100)")
    parser.add_argument("--task", default="mix")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rejected", type=float, default=1000.0, help="requests a second that are to be refused")
    parser.add_argument("--rounds", type=int, default=4, help="with and without them, of the same work")
    parser.add_argument("--each", type=int, default=2, help="questions of each client in a round")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--refuse", default="", help=argparse.SUPPRESS)
    parser.add_argument("--elsewhere", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.elsewhere:
        asyncio.run(elsewhere())
    if args.refuse:
        refuse_all(args.refuse, args.rejected)
        return 0
    questions = offline(args)
    command = [sys.executable, "-m", "thrifty.cli", "serve", "--model", args.model, "--dtype", args.dtype]
    command += ["--port", "0", "--slots", f"{args.clients}", "--max-body", f"{MOST_BODY}", "--key-env", "THRIFTY_KEYS"]
    environment = {**os.environ, "THRIFTY_KEYS": KEY, "NO_COLOR": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        (address,) = re.findall(r"http://\S+?(?=/v1)", server.stderr.readline())
        try:
            found = asyncio.run(measure(address, args, questions))
        finally:
            server.terminate()
    found["wrong"] = dict(Counter(found["wrong"]))
    print(json.dumps({"benchmark": "load", **vars(args), **found}))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
