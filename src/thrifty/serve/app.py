"""The gateway's routes: requests in OpenAI's shape, handed to an engine, and its answers handed back."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from thrifty.errors import ThriftyError
from thrifty.serve import usage
from thrifty.serve.answering import Answering
from thrifty.serve.asking import Asking, Defaults, explains
from thrifty.serve.bodies import ChatBody, CompletionBody, Generating, ResponsesBody, Sampling, read
from thrifty.serve.choosing import choose, without_addresses
from thrifty.serve.deadlines import Deadlines, end_within
from thrifty.serve.engine import BROKEN, CANCELLED, Ask, Done, Engine, Served
from thrifty.serve.errors import DEADLINE, SHUTTING_DOWN, Refusal, refusal, shutting_down
from thrifty.serve.guard import Door, Guard, Refused
from thrifty.serve.limits import Allowance
from thrifty.serve.metrics import CONTENT_TYPE, Metrics
from thrifty.serve.openapi import describe
from thrifty.serve.responses import ResponsesShape
from thrifty.serve.saved import VanillaMean
from thrifty.serve.shapes import ChatShape, CompletionShape
from thrifty.serve.status import status_page
from thrifty.serve.telling import Telling, until_gone
from thrifty.serve.visits import CLIENT_GONE, Visit, Visited

MOST_SHADOWS = 4
"""Plain responses that are measured beside others at the same time."""
CHARACTERS_PER_TOKEN = 4
"""Of a prompt, when its tokens are set aside; what it really has is charged."""
_CUT_SHORT = (BROKEN, CANCELLED, DEADLINE, SHUTTING_DOWN)
"""Exit reasons of responses that say nothing about what a response takes."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_log = logging.getLogger("thrifty.serve")


class Gateway:
    """An engine behind OpenAI's API.

    Args:
        engine: which answers.
        door: who is let in.
        defaults: what holds where a client says nothing.
        vanilla: what plain responses take.
        vanilla_share: of the requests with a method or a bound on the thinking that are answered once more without,
            to measure what plain responses take; nobody is sent those.
        deadlines: how long a request may take.
        log_prompts: whether what was asked and answered is to stand in the log.
    """

    def __init__(
        self,
        engine: Engine,
        door: Door | None = None,
        defaults: Defaults | None = None,
        vanilla: VanillaMean | None = None,
        vanilla_share: float = 0.0,
        deadlines: Deadlines | None = None,
        log_prompts: bool = False,
    ) -> None:
        self.engine, self.defaults = engine, defaults or Defaults()
        self.deadlines, self.log_prompts = deadlines or Deadlines(), log_prompts
        own = [method for served in engine.models() for method in (served.method, *served.methods.values())]
        self.metrics = Metrics(lambda: self._count("waiting"), lambda: self._count("running"), own)
        self._stopping = False
        self.vanilla, self._share = vanilla or VanillaMean(), vanilla_share
        self._due = 0.0
        self._shadows: dict[asyncio.Task[None], Answering | None] = {}
        self._running: dict[tuple[str, str], Answering | None] = {}  # None while it is being handed to the engine
        self._began = int(time.time())
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/responses", self._respond, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{model:path}", self._model, methods=["GET"]),
            Route("/v1/requests/{id}/finish", self._finish, methods=["POST"]),
            Route("/openapi.json", self._describe, methods=["GET"]),
            Route("/healthz", self._health, methods=["GET"]),
            Route("/metrics", self._counts, methods=["GET"]),
            Route("/status", self._status, methods=["GET"]),
            Route("/status.json", self._figures, methods=["GET"]),
        ]
        handlers: dict[Any, Any] = {ThriftyError: _refused, HTTPException: _not_found, Exception: _failed}
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        self.app = Visited(Guard(app, door or Door()), self.metrics.visit)

    async def _chat(self, request: Request) -> Telling:
        body = read(ChatBody, await request.body())
        asking = self._asking("chatcmpl-", body)
        shape = ChatShape(asking.id, body.model, _includes_usage(body), logprobs=bool(body.logprobs))
        return await self._answer(request, body, asking.chat(body), shape)

    async def _complete(self, request: Request) -> Telling:
        body = read(CompletionBody, await request.body())
        asking = self._asking("cmpl-", body)
        shape = CompletionShape(asking.id, body.model, _includes_usage(body), logprobs=body.logprobs is not None)
        return await self._answer(request, body, asking.completion(body), shape)

    async def _respond(self, request: Request) -> Telling:
        body = read(ResponsesBody, await request.body())
        asking = self._asking("resp_", body)
        (ask,) = asking.responses(body)
        echoed = {
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "reasoning": {"effort": ask.effort, "summary": None},
            "temperature": ask.settings.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "top_p": ask.settings.top_p,
            "truncation": "disabled",
            "user": body.user,
        }
        return await self._answer(request, body, [ask], ResponsesShape(asking.id, body.model, echoed))

    def _asking(self, prefix: str, body: Sampling) -> Asking:
        choice = choose(body.model, body.thrifty, self.engine.models())
        return Asking(prefix + uuid.uuid4().hex, choice, self.engine.passes, self.defaults)

    async def _answer(
        self, request: Request, body: Sampling, asks: Sequence[Ask], shape: ChatShape | CompletionShape | ResponsesShape
    ) -> Telling:
        owner, id = request.state.owner, asks[0].id
        visit: Visit = request.state.visit
        allowance: Allowance = request.state.allowance
        if self._stopping:
            raise shutting_down()
        alias = request.headers.get("x-request-id")
        if alias is not None and not _REQUEST_ID.fullmatch(alias):
            raise Refusal("X-Request-ID must be 8 to 64 letters, digits, - or _", 400, "invalid_value")
        names = [(owner, name) for name in (id, alias) if name]
        if any(name in self._running for name in names):
            raise Refusal("another request with this X-Request-ID is running: choose a new one", 409, "id_in_use")

        def observe(ask: Ask, done: Done) -> None:
            visit.dones.append(done)
            visit.id, visit.model, visit.method = alias or id, ask.model, done.method
            allowance.spend(done.usage.total)
            self._observe(ask, done)

        reserved = allowance.reserve(sum(ask.settings.max_tokens + _prompt_tokens(ask) for ask in asks))
        self._running.update(dict.fromkeys(names))

        def forget() -> None:
            allowance.release(reserved)
            for name in names:
                self._running.pop(name, None)

        visit.stream = bool(body.stream)
        try:
            answering = await self._opened(request, asks, observe)
        except BaseException:
            forget()
            raise
        visit.id, visit.model = alias or id, asks[0].model
        self._running.update(dict.fromkeys(names, answering))
        self._measure(asks[0])
        unwatch = self.deadlines.watch(answering)

        def told() -> dict[str, Any]:
            dones = [answer.end for answer in answering.answers]
            saved = self.vanilla.saved(asks[0].model, dones)
            visit.saved = saved["tokens"] if saved else None
            account = usage.responses_usage if isinstance(shape, ResponsesShape) else usage.usage
            return account(dones, saved, explains(body))

        def ended() -> None:
            unwatch()
            forget()
            visit.first_piece = answering.first_piece
            if self.log_prompts:
                answers = [{part: a.text(part) for part in ("thinking", "answer")} for a in answering.answers]
                asked = [ask.messages or ask.prompt for ask in asks if ask.sample == 0]
                visit.said = {"asked": asked, "answered": answers}

        return Telling(answering, shape, bool(body.stream), alias or id, told, ended, allowance.headers())

    async def _opened(self, request: Request, asks: Sequence[Ask], observe: Callable[[Ask, Done], None]) -> Answering:
        """Hand a request to the engine.

        Raises:
            Refusal: the engine does not take it, the server stops, or the client is gone.
        """
        opening = asyncio.ensure_future(Answering.open(self.engine, asks, observe))
        gone = asyncio.ensure_future(until_gone(request.receive))
        try:
            await asyncio.wait({opening, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                request.state.visit.status = CLIENT_GONE
                raise Refusal("the client is gone", CLIENT_GONE)
            answering = opening.result()
            if self._stopping:  # it began while this one came in
                answering.cancel()
                await answering.settle()
                raise shutting_down()
            return answering
        finally:
            gone.cancel()
            opening.cancel()
            await asyncio.wait({opening})

    def stop(self, seconds: float) -> None:
        """Take no more requests, and have those at work end.

        Args:
            seconds: that they have left: most for the thinking, the rest for the answer.
        """
        self._stopping = True
        for answering in self._answerings():
            end_within(answering, seconds, shutting_down())
        for shadow in self._shadows.values():
            if shadow is not None:
                shadow.cancel()

    def _observe(self, ask: Ask, done: Done) -> None:
        """Take note of the end of a response."""
        plain = done.method == "vanilla" and _unbounded(ask)
        comparable = not plain and done.exit_reason not in _CUT_SHORT
        self.metrics.respond(ask.model, done, self.vanilla.saved(ask.model, [done]) if comparable else None)
        if plain and done.exit_reason not in _CUT_SHORT:
            self.vanilla.observe(ask.model, done)

    def _observe_plain(self, ask: Ask, done: Done) -> None:
        """Take note of the end of a plain response that nobody asked for."""
        self.metrics.measure(ask.model, done)
        if done.exit_reason not in _CUT_SHORT:
            self.vanilla.observe(ask.model, done)

    def _measure(self, ask: Ask) -> None:
        """Answer a share of the requests once more without a method; nobody waits for it."""
        default = next((served.method for served in self.engine.models() if served.id == ask.model), "vanilla")
        if (ask.method or default) == "vanilla" and _unbounded(ask):
            return
        self._due += self._share
        if self._due < 1 or len(self._shadows) >= MOST_SHADOWS:
            return
        self._due -= 1
        settings = ask.settings.with_(thinking_budget=None)
        task = asyncio.create_task(
            self._shadow(replace(ask, method="vanilla", effort=None, settings=settings, logprobs=None))
        )
        self._shadows[task] = None
        task.add_done_callback(self._shadows.pop)

    async def _shadow(self, ask: Ask) -> None:
        task = asyncio.current_task()
        assert task is not None, "it is started as a task"
        try:
            answering = self._shadows[task] = await Answering.open(self.engine, [ask], self._observe_plain)
            if self._stopping:
                answering.cancel()
            loop, most = asyncio.get_running_loop(), self.deadlines.total
            # its thinking is not closed before that: it would no longer be a plain response
            timer = None if most is None else loop.call_later(most, answering.cancel)
            try:
                await answering.collect()
            finally:
                if timer is not None:
                    timer.cancel()
        except Refusal as error:
            _log.info("a plain response could not be measured: %s", error)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._listed()})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["model"]
        for model in self._listed():
            if model["id"] == name:
                return JSONResponse(model)
        raise Refusal(f"there is no model {name[:200]!r}: see /v1/models", 404, "model_not_found", "model")

    def _listed(self) -> list[dict[str, Any]]:
        return [
            self._told(served, name)
            for served in self.engine.models()
            for name in (served.id, *(f"{served.id}@{offered}" for offered in served.methods))
        ]

    def _told(self, served: Served, name: str) -> dict[str, Any]:
        method = name.removeprefix(f"{served.id}@")
        return {
            "id": name,
            "object": "model",
            "created": self._began,
            "owned_by": "thrifty",
            "context_length": served.context_length,
            "max_tokens": served.max_tokens,
            "method": without_addresses(served.methods.get(method, served.method)),
        }

    async def _finish(self, request: Request) -> Response:
        id = request.path_params["id"]
        answering = self._running.get((request.state.owner, id))
        if answering is None:
            raise Refusal(f"no request {id[:100]!r} of yours is running", 404, "request_not_found")
        answering.finish()
        return JSONResponse({"id": id, "object": "request", "finishing": True})

    async def _describe(self, request: Request) -> Response:
        return JSONResponse(describe())

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _counts(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _status(self, request: Request) -> Response:
        return status_page()

    async def _figures(self, request: Request) -> Response:
        served = self.engine.models()
        told = {
            "models": [model.id for model in served],
            "method": without_addresses(served[0].method),
            "uptime_seconds": int(time.time()) - self._began,
            "waiting": self._count("waiting"),
            "running": self._count("running"),
            **self.metrics.totals(),
        }
        return JSONResponse(told, headers={"cache-control": "no-store"})

    def _count(self, what: Literal["waiting", "running"]) -> int:
        return sum(getattr(answering, what) for answering in self._answerings())

    def _answerings(self) -> set[Answering]:
        return {answering for answering in self._running.values() if answering is not None}


def _unbounded(ask: Ask) -> bool:
    """Tell whether nothing but the limit of the response bounds its thinking."""
    return ask.settings.thinking_budget is None and ask.effort in (None, "xhigh")


def _prompt_tokens(ask: Ask) -> int:
    """Estimate the tokens of a prompt, before anything has read it."""
    characters = len(ask.prompt or "") + sum(len(message["content"]) for message in ask.messages)
    return characters // CHARACTERS_PER_TOKEN


def _includes_usage(body: Generating) -> bool:
    if body.stream_options is not None and not body.stream:
        raise Refusal("stream_options needs `stream`: true", 400, "invalid_value", "stream_options")
    return bool(body.stream_options and body.stream_options.include_usage)


async def _refused(_: Request, error: ThriftyError) -> Refused:
    return Refused(refusal(error))


async def _not_found(request: Request, error: HTTPException) -> Refused:
    path = request.url.path[:200]
    if error.status_code == 405:
        return Refused(Refusal(f"{request.method} is not for {path!r}", 405, "method_not_allowed"))
    return Refused(Refusal(f"there is nothing at {path!r}: see /openapi.json", error.status_code, "not_found"))


async def _failed(_: Request, __: Exception) -> Refused:
    return Refused(Refusal("the server failed on this request", 500, "internal_error"))
