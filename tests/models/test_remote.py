"""The remote backend against a scripted server on the loopback."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import pytest

from thrifty.catalogue import Need
from thrifty.errors import ContextOverflow, MissingAccess, ThriftyError, Unreachable
from thrifty.methods import get_method
from thrifty.models.base import FOLLOW, Job, Settings
from thrifty.models.client import _retry_after
from thrifty.models.remote import RemoteModel, _split
from thrifty.traces.think import Splitter
from thrifty.traces.trace import Problem, Trace

KEY = "sk-very-secret-0123456789"
QUESTION = Problem.ask("What is 2 + 3?", id="p1")
Reply = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Scripted

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers), {}))
        self.server.on_get(self, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), body))
            self.server.flying += 1
            self.server.most = max(self.server.most, self.server.flying)
            reply = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        try:
            reply(self, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.flying -= 1

    def send(self, status: int, body: bytes, **headers: str) -> None:
        with self.server.lock:  # the client may ask again as soon as it has read this
            self.server.flying -= 1
        try:
            self.send_response(status)
            told = {"content_type": "application/json", "content_length": str(len(body))} | headers
            for name, value in told.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)
        finally:
            with self.server.lock:
                self.server.flying += 1


class Scripted(ThreadingHTTPServer):
    """Answers each POST with the next reply of its script, the last one for ever."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.script: list[Reply] = [chat("5")]
        self.on_get: Reply = js({"object": "list", "data": [{"id": "tiny"}]})
        self.flying = self.most = 0
        self.released = threading.Event()
        self.hung_up = threading.Semaphore(0)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def posts(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.seen if body]


def js(payload: Any, status: int = 200, **headers: str) -> Reply:
    return lambda handler, _: handler.send(status, json.dumps(payload).encode(), **headers)


def raw(body: bytes, status: int = 200, **headers: str) -> Reply:
    return lambda handler, _: handler.send(status, body, **headers)


def chat(content: str | None, finish: str = "stop", usage: Any = (7, 10), **message: Any) -> Reply:
    told = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if isinstance(usage, tuple) else usage
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content} | message}
    return js({"object": "chat.completion", "choices": [choice]} | ({"usage": told} if told else {}))


def hang(handler: Handler, _: dict[str, Any]) -> None:
    """Answer nothing; notice when the client goes."""
    handler.close_connection = True
    handler.connection.settimeout(5)
    try:
        gone = handler.connection.recv(1) == b""
    except OSError:
        gone = False
    if gone:
        handler.server.hung_up.release()


def sse(events: list[Any], size: int = 1, end: bytes = b"data: [DONE]\n\n") -> Reply:
    """Stream events in chunks of a few bytes."""
    lines = b": a comment\r\n\r\n" + b"".join(
        b"data: " + json.dumps(e, ensure_ascii=False).encode() + b"\n\n" for e in events
    )

    def reply(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        data = lines + end
        for i in range(0, len(data), size):
            part = data[i : i + size]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    return reply


def delta(content: str | None = None, finish: str | None = None, **more: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content} | more, "finish_reason": finish}]}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THRIFTY_API_KEY", "OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    threading.Thread(target=scripted.serve_forever, args=(0.01,), daemon=True).start()
    yield scripted
    scripted.released.set()
    scripted.shutdown()
    scripted.server_close()


@pytest.fixture
def connect(server: Scripted) -> Iterator[Callable[..., RemoteModel]]:
    models: list[RemoteModel] = []

    def connect(fragment: str = "#tiny", **options: Any) -> RemoteModel:
        models.append(RemoteModel.connect(server.url + fragment, **{"backoff": 0.001} | options))
        return models[-1]

    yield connect
    for model in models:
        model.close()


def one(model: RemoteModel, settings: Settings | None = None) -> Trace:
    (trace,) = model.respond([Job(QUESTION)], settings or Settings())
    return trace


def drain(stream: Any) -> tuple[list[tuple[str, str]], Trace]:
    """Return the pieces of a stream, those of one phase joined, and its trace."""
    pieces: list[tuple[str, str]] = []
    while True:
        try:
            phase, text = next(stream)
        except StopIteration as stop:
            return pieces, stop.value
        if pieces and pieces[-1][0] == phase:
            text = pieces.pop()[1] + text
        pieces.append((phase, text))


# Plain answers


def test_chat(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [chat("It is 5.", usage=(9, 4))]
    trace = one(connect(), Settings(max_tokens=50, temperature=0.5, top_p=0.9, seed=3))
    assert trace.text == trace.answer_text == "It is 5."
    assert [s.kind for s in trace.segments] == ["answer"]
    assert (trace.problem_id, trace.method, trace.sample, trace.seed) == ("p1", "vanilla", 0, 3)
    assert (trace.stop_reason, trace.closed_by, trace.answer) == ("eos", "prompt", None)
    assert (trace.usage.prompt, trace.usage.thinking, trace.usage.answer) == (9, 0, 4)
    assert trace.usage.wall_seconds > 0
    assert trace.events == {}
    path, headers, body = server.seen[-1]
    assert path == "/v1/chat/completions"
    assert "authorization" not in {h.lower() for h in headers}
    assert body.pop("seed") in range(1 << 31)
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "What is 2 + 3?"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
    }


def test_fields_that_some_servers_refuse_are_sent_only_if_set(
    server: Scripted, connect: Callable[..., RemoteModel]
) -> None:
    one(connect(), Settings(top_k=20, min_p=0.1, stop=("END",)))
    body = server.posts[-1]
    assert (body["top_k"], body["min_p"], body["stop"]) == (20, 0.1, ["END"])


def test_completions(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    choice = {"text": "5", "finish_reason": "length", "logprobs": {"token_logprobs": [None, -0.5]}}
    server.script = [js({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})]
    trace = one(connect(api="completions", logprobs=1))
    assert (trace.answer_text, trace.stop_reason) == ("5", "max_tokens")
    assert trace.events == {"logprobs": [-0.5]}
    path, _, body = server.seen[-1]
    assert path == "/v1/completions"
    assert body["prompt"] == "What is 2 + 3?\n"
    assert body["logprobs"] == 1
    assert "messages" not in body


def test_logprobs_of_chat(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    choice = {
        "message": {"content": "5!"},
        "finish_reason": "stop",
        "logprobs": {"content": [{"token": "5", "logprob": -0.25}, {"token": "!", "logprob": -1}]},
    }
    server.script = [js({"choices": [choice]})]
    assert one(connect(logprobs=2)).events["logprobs"] == [-0.25, -1.0]
    assert (server.posts[-1]["logprobs"], server.posts[-1]["top_logprobs"]) == (True, 2)


@pytest.mark.parametrize(
    ("finish", "stop_reason", "events"),
    [
        ("stop", "eos", {}),
        ("length", "max_tokens", {}),
        ("content_filter", "stop", {"finish_reason": "content_filter"}),
    ],
)
def test_stop_reasons(
    server: Scripted, connect: Callable[..., RemoteModel], finish: str, stop_reason: str, events: dict[str, Any]
) -> None:
    server.script = [chat("5", finish)]
    trace = one(connect())
    assert (trace.stop_reason, trace.events) == (stop_reason, events)


def test_stop_string(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [js({"choices": [{"message": {"content": "5"}, "finish_reason": "stop", "stop_reason": "END"}]})]
    assert one(connect()).stop_reason == "stop"


# Thinking


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_field(server: Scripted, connect: Callable[..., RemoteModel], field: str) -> None:
    details = {"prompt_tokens": 1, "completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 8}}
    server.script = [chat("5", usage=details, **{field: "2 and 3"})]
    trace = one(connect())
    assert [(s.kind, s.phase, s.text) for s in trace.segments] == [
        ("thinking", "thinking", "2 and 3"),
        ("answer", "answer", "5"),
    ]
    assert trace.closed_by == "model"
    assert (trace.usage.thinking, trace.usage.answer) == (8, 2)
    assert trace.events == {}


def test_reasoning_that_never_ended(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [chat(None, "length", reasoning_content="2 and")]
    trace = one(connect())
    assert (trace.thinking_text, trace.answer_text, trace.closed_by) == ("2 and", "", None)
    assert trace.exit_reason == "max_tokens"


def test_reasoning_told_twice_counts_once(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [chat("<think>2 and 3</think>5", reasoning_content="2 and 3")]
    trace = one(connect())
    assert (trace.thinking_text, trace.answer_text, trace.closed_by) == ("2 and 3", "5", "model")


@pytest.mark.parametrize(
    ("content", "thinking", "answer", "closed_by"),
    [
        ("5", "", "5", "prompt"),
        ("<think>2+3</think>5", "<think>2+3</think>", "5", "model"),
        ("\n<think>2+3</think>\n\n5", "\n<think>2+3</think>", "\n\n5", "model"),
        ("[THINK]2+3[/THINK]5", "[THINK]2+3[/THINK]", "5", "model"),
        ("2+3\n</think>\n5", "2+3\n</think>", "\n5", "model"),
        ("<think>2+3", "<think>2+3", "", None),
        ("<think>a</think> <think>b", "<think>a</think> <think>b", "", None),
        ("<think>a</think>\n<think>b</think>5", "<think>a</think>\n<think>b</think>", "5", "model"),
        ("<think>a</think>\n</think>5", "<think>a</think>\n</think>", "5", "model"),
        ("<think>a</think>5 is not </think> or <think>", "<think>a</think>", "5 is not </think> or <think>", "model"),
        ("Write <think> here", "", "Write <think> here", "prompt"),
        ("<think>a <think> b</think>5", "<think>a <think> b</think>", "5", "model"),
        ("<think></think>5", "<think></think>", "5", "model"),
        ("1 < 2 </thin", "", "1 < 2 </thin", "prompt"),
        ("", "", "", "prompt"),
    ],
)
def test_split(content: str, thinking: str, answer: str, closed_by: str | None) -> None:
    assert _split(content) == (thinking, answer, closed_by)
    splitter = Splitter()
    pieces = [piece for character in content for piece in splitter.feed(character)] + splitter.feed("", last=True)
    assert "".join(text for _, text in pieces) == content
    assert splitter.closed_by == closed_by
    if not content.startswith("2+3"):  # what comes before a lone closer is out before the closer comes
        assert "".join(text for phase, text in pieces if phase == "answer") == answer


def test_think_tags_share_the_tokens_by_length(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [chat("<think>" + "x" * 22 + "</think>" + "5" * 13, usage=(7, 100))]
    trace = one(connect())
    assert trace.closed_by == "model"
    assert trace.events == {"thinking_tokens_estimated": True}
    assert (trace.usage.thinking, trace.usage.answer) == (74, 26)  # 37 of 50 characters


def test_zero_reasoning_tokens_beside_a_reasoning_are_not_believed(
    server: Scripted, connect: Callable[..., RemoteModel]
) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 0}}
    server.script = [chat("5", usage=usage, reasoning="123456789"), chat("5", usage=usage)]
    model = connect()
    assert one(model).usage.thinking == 9
    plain = one(model)
    assert (plain.usage.thinking, plain.usage.answer, plain.closed_by, plain.events) == (0, 10, "prompt", {})


@pytest.mark.parametrize("completion", [10, 3])
def test_hidden_reasoning_is_counted(server: Scripted, connect: Callable[..., RemoteModel], completion: int) -> None:
    """Counted in the completion, or only in the total: the account is the same."""
    usage = {"prompt_tokens": 5, "completion_tokens": completion, "total_tokens": 15}
    server.script = [chat("5", usage=usage | {"completion_tokens_details": {"reasoning_tokens": 7}})]
    trace = one(connect())
    assert (trace.usage.thinking, trace.usage.answer, trace.closed_by) == (7, 3, "model")


def test_without_usage_everything_is_estimated(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [chat("<think>abcde</think>" + "5" * 20, usage=None)]
    trace = one(connect())
    assert (trace.usage.prompt, trace.usage.thinking, trace.usage.answer) == (4, 5, 5)
    assert trace.events == {"usage_estimated": True, "thinking_tokens_estimated": True}


# Connecting


def test_the_only_model_is_taken(connect: Callable[..., RemoteModel], server: Scripted) -> None:
    model = connect("")
    assert model.name == f"{server.url}#tiny"
    assert model.gives == Need.TEXT | Need.LOGPROBS
    one(model)
    assert server.posts[-1]["model"] == "tiny"


def test_several_models_are_listed(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.on_get = js({"data": [{"id": "tiny"}, {"id": "org/large"}]})
    with pytest.raises(ThriftyError, match=rf"tiny, org/large; name one, as {server.url}#tiny$"):
        connect("")
    assert connect("#org/large").name.endswith("/v1#org/large")


def test_no_models(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.on_get = js({"data": []})
    with pytest.raises(ThriftyError, match="lists no model"):
        connect("")


def test_a_server_that_lists_no_models_is_alive_all_the_same(
    server: Scripted, connect: Callable[..., RemoteModel]
) -> None:
    server.on_get = js({}, 404)
    assert one(connect()).text == "5"
    with pytest.raises(Unreachable, match=r"answered 404.*URL ends in /v1"):
        connect("")


def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    with pytest.raises(Unreachable) as caught:
        RemoteModel.connect(f"{url}#tiny")
    assert str(caught.value) == (
        f"no server answers at {url} (connection refused): is it running, and does the URL end in /v1?"
    )


@pytest.mark.parametrize(
    "url",
    ["localhost:8000/v1", "ftp://x/v1", "http://", "http://h:port/v1", "http://me:hush@h:port/v1", "http://h/?k=hush"],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ThriftyError, match="not a server URL") as caught:
        RemoteModel.connect(url)
    assert "hush" not in str(caught.value)


def test_unknown_api(connect: Callable[..., RemoteModel]) -> None:
    with pytest.raises(ThriftyError, match="unknown API 'chats'"):
        connect(api="chats")


def test_a_closed_model_says_so(connect: Callable[..., RemoteModel]) -> None:
    model = connect()
    model.close()
    with pytest.raises(ThriftyError, match="connect anew"):
        one(model)


def test_closing_a_model_ends_its_work(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [chat("5"), hang]
    model = connect()
    traces = model.respond(problems([]), Settings(batch_size=2))
    next(traces)
    model.close()
    with pytest.raises(ThriftyError, match="connect anew"):
        next(traces)


@pytest.mark.parametrize("field", ["thinking_budget", "answer_reserve"])
def test_what_only_an_engine_can_do_is_refused_before_any_work(
    server: Scripted, connect: Callable[..., RemoteModel], field: str
) -> None:
    with pytest.raises(MissingAccess, match="thinking_budget"):
        connect().respond([Job(QUESTION)], Settings(**{field: 5}))
    assert server.posts == []


# The key


@pytest.mark.parametrize("variable", ["THRIFTY_API_KEY", "OPENAI_API_KEY", "MY_KEY"])
def test_key(
    server: Scripted, connect: Callable[..., RemoteModel], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f" {KEY}\n")
    model = connect(key_variable="MY_KEY") if variable == "MY_KEY" else connect()
    one(model)
    assert {h.lower(): v for h, v in server.seen[-1][1].items()}["authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(model) + model.name + repr(vars(model)) + str(model._server)


def test_a_named_variable_does_not_fall_back(
    server: Scripted, connect: Callable[..., RemoteModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    one(connect(key_variable="MY_KEY"))
    assert "authorization" not in {h.lower() for h in server.seen[-1][1]}


def test_credentials_in_the_url_are_used_and_not_shown(server: Scripted) -> None:
    model = RemoteModel.connect(server.url.replace("//", "//me:hush@") + "#tiny")
    assert model.name == f"{server.url}#tiny"
    one(model)
    assert {h.lower(): v for h, v in server.seen[-1][1].items()}["authorization"].startswith("Basic ")
    server.script = [raw(b"hush me:hush", 403)]
    with pytest.raises(Unreachable, match="403") as caught:
        one(model)
    assert "hush" not in str(caught.value)
    model.close()


def test_401_names_the_variable_and_never_the_key(
    server: Scripted, connect: Callable[..., RemoteModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on_get = js({"error": {"message": "no key"}}, 401)
    with pytest.raises(Unreachable, match=r"answered 401 \(no key\): set the environment variable THRIFTY_API_KEY"):
        connect()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.on_get = js({"error": {"message": f"\x1b[31mwrong key:\n{KEY}"}}, 401)
    with pytest.raises(Unreachable) as caught:
        connect()
    said = str(caught.value)
    assert said.endswith("answered 401 ([31mwrong key: ***): check the key in the environment variable OPENAI_API_KEY")


def test_a_key_that_no_header_can_carry(connect: Callable[..., RemoteModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_API_KEY", KEY + "\u00e9")
    with pytest.raises(ThriftyError, match="the key in THRIFTY_API_KEY") as caught:
        connect()
    assert KEY not in str(caught.value)


# Failures


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_refusals_are_not_retried(server: Scripted, connect: Callable[..., RemoteModel], status: int) -> None:
    server.script = [js({"detail": "so " * 1000}, status)]
    with pytest.raises(Unreachable, match=f"answered {status}") as caught:
        one(connect())
    assert len(server.posts) == 1
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("so ") <= 101


def test_context_overflow(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [js({"error": {"message": "This model's maximum context length is 10 tokens."}}, 400)]
    with pytest.raises(ContextOverflow, match="shorten the prompt"):
        one(connect())


def test_429_with_retry_after(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [js({}, 429, retry_after="0.2"), chat("5")]
    began = time.monotonic()
    trace = one(connect())
    assert trace.text == "5"
    assert trace.events == {"retries": 1}
    assert 0.2 <= time.monotonic() - began < 2


def test_retry_after_beyond_the_deadline_fails_at_once(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [js({"error": "slow down"}, 429, retry_after="30")]
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"429 \(slow down\)"):
        one(connect(deadline=5))
    assert time.monotonic() - began < 2


def test_retry_after_values() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < _retry_after(soon) <= 30
    assert [_retry_after(v) for v in ("2", "1.5", "9999", "-3", "soon", "nan", "")] == [2, 1.5, 60, 0, 0, 0, 0]


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504])
def test_passing_failures_are_retried(server: Scripted, connect: Callable[..., RemoteModel], status: int) -> None:
    server.script = [raw(b"oops", status, content_type="text/plain"), chat("5")]
    assert one(connect()).text == "5"


def test_lasting_failures_are_given_up(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [js({"error": {"message": "overloaded"}}, 503)]
    with pytest.raises(Unreachable, match=r"answered 503 \(overloaded\), asked 3 times"):
        one(connect(retries=2))
    assert len(server.posts) == 3


def test_a_dropped_connection_is_retried(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    def drop(handler: Handler, _: dict[str, Any]) -> None:
        handler.close_connection = True

    server.script = [drop, chat("5")]
    assert one(connect()).text == "5"


def test_silence_is_retried(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [hang, chat("5")]
    assert one(connect(timeout=0.3)).events == {"retries": 1}


def test_deadline(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [hang]
    model = connect(deadline=0.3)
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"gave no complete answer within 0\.3 s"):
        one(model)
    assert time.monotonic() - began < 2
    assert server.hung_up.acquire(timeout=2)


def test_deadline_holds_against_a_trickle(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    def trickle(handler: Handler, _: dict[str, Any]) -> None:
        handler.send(200, b"{", content_length="1000")
        while not handler.server.released.wait(0.02):
            handler.wfile.write(b" ")

    server.script = [trickle]
    with pytest.raises(Unreachable, match=r"within 0\.3 s"):
        one(connect(deadline=0.3, timeout=0.2))


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (raw(b'{"choices": [{"mess'), "application/json: Unterminated string"),
        (raw(b"<html>hello</html>", content_type="text/html"), "text/html: Expecting value"),
        (js({"error": {"message": "upstream died", "code": 502}}), "it says: upstream died"),
        (js({"choices": []}), "no choices"),
        (js([1]), "not an object"),
        (js({"choices": [{}]}), "without a message"),
        (js({"choices": [{"message": {"content": [1]}}]}), "not text"),
        (raw(b"[" * 100_000), "cannot be read"),
    ],
)
def test_unreadable_answers(server: Scripted, connect: Callable[..., RemoteModel], bad: Reply, told: str) -> None:
    server.script = [bad, chat("5"), bad]
    model = connect(retries=1)
    assert one(model).text == "5"
    with pytest.raises(Unreachable, match=rf"{told}.*asked 2 times"):
        one(model)


def test_half_a_body_is_retried(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    def half(handler: Handler, _: dict[str, Any]) -> None:
        handler.send(200, b'{"choices": [', content_length="1000")
        handler.close_connection = True

    server.script = [half, chat("5"), half]
    model = connect(retries=1)
    assert one(model).text == "5"
    with pytest.raises(Unreachable, match="broke off"):
        one(model)


def test_oversized_bodies_are_cut_off(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    sent = 0

    def flood(handler: Handler, _: dict[str, Any]) -> None:
        nonlocal sent
        handler.send(200, b"{", content_length=str(1 << 30))
        for _ in range(1 << 14):
            handler.wfile.write(b" " * (1 << 16))
            sent += 1 << 16

    server.script = [flood]
    with pytest.raises(Unreachable, match="more than 100,000 bytes"):
        one(connect(max_bytes=100_000))
    assert len(server.posts) == 1
    assert sent < 1 << 28


def test_oversized_errors_are_cut_off(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [raw(b"x" * (8 << 20), 400)]
    with pytest.raises(Unreachable, match=r"answered 400 \(x{300}\)"):
        one(connect())


def test_redirects_are_told(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [raw(b"", 308, location="https://elsewhere/v1")]
    with pytest.raises(Unreachable, match="https://elsewhere/v1"):
        one(connect())


# Many at once


def problems(drawn: list[int], limit: int | None = None) -> Iterator[Job]:
    for i in count() if limit is None else range(limit):
        drawn.append(i)
        yield Job(Problem.ask(f"{i}", id=f"p{i}"))


def echo(seconds: float = 0.0) -> Reply:
    def reply(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        chat(body["messages"][-1]["content"])(handler, body)

    return reply


def test_concurrency_is_bounded_and_used(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [echo(0.02)]
    traces = list(connect().respond(problems([], 20), Settings(batch_size=4)))
    assert {t.problem_id: t.text for t in traces} == {f"p{i}": f"{i}" for i in range(20)}
    assert server.most == 4


def test_jobs_are_read_lazily(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [echo()]
    drawn: list[int] = []
    traces = connect().respond(problems(drawn), Settings(batch_size=3))
    assert drawn == []
    for taken in range(1, 6):
        next(traces)
        time.sleep(0.02)
        assert len(drawn) <= taken + 3
    traces.close()


def test_closing_cancels_what_is_in_flight(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [chat("5"), hang]
    drawn: list[int] = []
    traces = connect().respond(problems(drawn), Settings(batch_size=3))
    assert next(traces).text == "5"
    deadline = time.monotonic() + 10
    while len(server.posts) < 3 and time.monotonic() < deadline:  # the rest of the batch is on its way
        time.sleep(0.01)
    traces.close()
    asked = len(server.posts)
    for _ in range(asked - 1):
        assert server.hung_up.acquire(timeout=2)
    time.sleep(0.05)
    assert len(server.posts) == asked
    assert len(drawn) <= 4


def test_what_finished_comes_before_the_error(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    def reply(handler: Handler, body: dict[str, Any]) -> None:
        if body["messages"][-1]["content"] != "1":
            return chat("5")(handler, body)
        time.sleep(0.1)
        return js({}, 400)(handler, body)

    server.script = [reply]
    traces = connect().respond(problems([], 2), Settings())
    assert next(traces).problem_id == "p0"
    with pytest.raises(Unreachable, match="answered 400"):
        next(traces)


def test_errors_of_the_source_pass_through(connect: Callable[..., RemoteModel]) -> None:
    def source() -> Iterator[Job]:
        yield Job(QUESTION)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        list(connect().respond(source(), Settings()))


def test_seeds_belong_to_rows(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    def seeds(batch_size: int, seed: int = 0) -> set[tuple[str, int]]:
        server.seen.clear()
        jobs = [Job(Problem.ask(id, id=id), sample) for id in ("a", "b") for sample in range(2)]
        list(model.respond(jobs, Settings(batch_size=batch_size, seed=seed)))
        return {(p["messages"][0]["content"], p["seed"]) for p in server.posts}

    model = connect()
    first = seeds(1)
    assert len({seed for _, seed in first}) == 4
    assert first == seeds(1) == seeds(4)
    assert not first & seeds(1, seed=1)
    assert ("a", 1806043053) in first  # the same in every process: sha256('[0, "a", 0]')


# Streaming


def test_stream_byte_by_byte(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 8, "completion_tokens_details": {"reasoning_tokens": 5}}
    pieces = ["<th", "ink>zwei ", "und drei, ü", "</thi", "nk>", "\n\n5", " €"]
    server.script = [sse([*map(delta, pieces), delta(finish="stop"), {"choices": [], "usage": usage}])]
    told, trace = drain(connect().stream(QUESTION.messages, Settings()))
    assert told == [("thinking", "<think>zwei und drei, ü</think>"), ("answer", "\n\n5 €")]
    assert trace.text == "".join(pieces)
    assert trace.answer_text == "\n\n5 €"
    assert (trace.closed_by, trace.stop_reason, trace.events) == ("model", "eos", {})
    assert (trace.usage.prompt, trace.usage.thinking, trace.usage.answer) == (3, 5, 3)
    body = server.posts[-1]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_stream_reasoning(server: Scripted, connect: Callable[..., RemoteModel], field: str) -> None:
    events = [delta(**{field: "2 and "}), delta(**{field: "3"}), delta("It is "), delta("5", "stop")]
    server.script = [sse(events, 64)]
    told, trace = drain(connect().stream(QUESTION.messages, Settings()))
    assert told == [("thinking", "2 and 3"), ("answer", "It is 5")]
    assert (trace.thinking_text, trace.answer_text, trace.closed_by) == ("2 and 3", "It is 5", "model")
    assert trace.events == {"usage_estimated": True, "thinking_tokens_estimated": True}


def test_stream_unclosed(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [sse([delta("<think>2 and"), delta(" 3 <", "length")], 64)]
    told, trace = drain(connect().stream(QUESTION.messages, Settings()))
    assert told == [("thinking", "<think>2 and 3 <")]
    assert (trace.answer_text, trace.closed_by, trace.stop_reason) == ("", None, "max_tokens")


def test_stream_with_only_the_closer(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [sse([delta("2 and 3"), delta("</think>5", "stop")], 64)]
    _, trace = drain(connect().stream(QUESTION.messages, Settings()))
    assert (trace.thinking_text, trace.answer_text) == ("2 and 3</think>", "5")


def test_stream_completions(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    texts = [{"choices": [{"text": t, "finish_reason": f}]} for t, f in (("It is", None), (" 5", "stop"))]
    server.script = [sse(texts, 7)]
    told, _ = drain(connect(api="completions").stream(QUESTION.messages, Settings()))
    assert told == [("answer", "It is 5")]
    assert server.seen[-1][0] == "/v1/completions"


def test_stream_options_are_dropped_where_they_are_unknown(
    server: Scripted, connect: Callable[..., RemoteModel]
) -> None:
    server.script = [js({"error": "unknown field stream_options"}, 400), sse([delta("5", "stop")], 64)]
    told, trace = drain(connect().stream(QUESTION.messages, Settings()))
    assert told == [("answer", "5")]
    assert trace.events == {"usage_estimated": True}
    assert ["stream_options" in p for p in server.posts] == [True, False]


def test_a_server_that_does_not_stream_answers_in_one_piece(
    server: Scripted, connect: Callable[..., RemoteModel]
) -> None:
    server.script = [chat("5")]
    told, trace = drain(connect().stream(QUESTION.messages, Settings()))
    assert told == [("answer", "5")]
    assert trace.text == "5"


def test_stream_retries_only_before_the_first_piece(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    server.script = [js({}, 503), sse([delta("5")], 64, end=b"")]
    stream = connect().stream(QUESTION.messages, Settings())
    with pytest.raises(Unreachable, match="broke off before the end"):
        drain(stream)
    assert len(server.posts) == 2


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (sse([delta("5"), {"error": {"message": "out of memory"}}], 64), "out of memory"),
        (sse([delta("5")], 64, end=b"data: {half\n\n"), "cannot be read"),
        (sse([delta("5" * 50)] * 10, 1000), "raise max_bytes"),
        (sse([delta("5" * 500)], 100), "more than 200 bytes"),
    ],
)
def test_broken_streams(server: Scripted, connect: Callable[..., RemoteModel], reply: Reply, told: str) -> None:
    server.script = [reply]
    with pytest.raises(Unreachable, match=told):
        drain(connect(max_bytes=200).stream(QUESTION.messages, Settings()))


def test_stream_deadline(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    def stall(handler: Handler, body: dict[str, Any]) -> None:
        handler.send(200, b"data: " + json.dumps(delta("5")).encode() + b"\n\n", content_length="10000")
        hang(handler, body)

    server.script = [stall]
    stream = connect(deadline=0.3).stream(QUESTION.messages, Settings())
    assert next(stream) == ("answer", "5")
    with pytest.raises(Unreachable, match=r"within 0\.3 s"):
        next(stream)
    assert server.hung_up.acquire(timeout=2)


def test_closing_a_stream_hangs_up(server: Scripted, connect: Callable[..., RemoteModel]) -> None:
    def stall(handler: Handler, body: dict[str, Any]) -> None:
        handler.send(200, b"data: " + json.dumps(delta("5")).encode() + b"\n\n", content_length="10000")
        hang(handler, body)

    server.script = [stall]
    stream = connect().stream(QUESTION.messages, Settings())
    assert next(stream) == ("answer", "5")
    stream.close()
    assert server.hung_up.acquire(timeout=2)


def test_an_outline_of_another_server_is_quoted_and_its_failure_a_decline(
    server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTY_API_KEY", KEY)
    small = Scripted()
    threading.Thread(target=small.serve_forever, args=(0.01,), daemon=True).start()
    try:
        small.script = [chat("1. Add."), raw(b"no", 418)]
        method = get_method(f"thoughtmani(helper='{small.url}#tiny')")
        with closing(RemoteModel.connect(f"{server.url}#tiny", retries=0)) as model:
            told, declined = (
                next(iter(method.solve(model, [Job(QUESTION)], Settings(max_tokens=64)))) for _ in range(2)
            )
            assert model.partner(f"{server.url}#other")._server is model._server  # type: ignore[union-attr]  # it is one
    finally:
        small.shutdown()
        small.server_close()
    assert [m["content"] for m in server.posts[0]["messages"]] == [QUESTION.question, "1. Add.", FOLLOW]
    assert [m["content"] for m in server.posts[1]["messages"]] == [QUESTION.question]
    assert (told.thinking_text, told.answer_text, told.exit_reason) == ("1. Add.", "5", "thoughtmani")
    assert (told.usage.prompt, told.usage.answer, told.usage.helper) == (7, 10, 17)
    assert [t.events["thoughtmani"]["declined"] for t in (told, declined)] == [None, "failed"]
    seen = [[{name.lower(): value for name, value in h.items()} for _, h, _ in one.seen] for one in (server, small)]
    keys = [{headers.get("authorization") for headers in one} for one in seen]
    assert keys == [{f"Bearer {KEY}"}, {None}], "no server sees the key of another"
