"""From a body to what an engine is asked: one `Ask` for each response that the client wants."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.errors import ThriftyError, UnknownName
from thrifty.models.base import Settings
from thrifty.serve.bodies import ChatBody, CompletionBody, ResponsesBody, Sampling, Thrifty
from thrifty.serve.choosing import Choice
from thrifty.serve.effort import EFFORTS
from thrifty.serve.engine import Ask
from thrifty.serve.errors import Refusal, refusal
from thrifty.traces.trace import Message

_PASSED = (
    "response_format", "tools", "tool_choice", "parallel_tool_calls", "presence_penalty", "frequency_penalty",
    "logit_bias", "modalities", "verbosity",
)  # fmt: skip
"""Fields that only some engines can serve."""
_NOTHING: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
}
"""Values that ask for nothing, so that any engine can serve them."""


@dataclass(frozen=True)
class Defaults:
    """What holds where a client says nothing.

    Attributes:
        temperature: 0 is greedy.
        top_p: 1 for all tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Asking:
    """What the engine of a server is to be asked.

    Attributes:
        id: of the request.
        choice: what answers.
        passes: fields that the engine takes in `Ask.passed`.
        defaults: what holds where the client says nothing.
    """

    id: str
    choice: Choice
    passes: frozenset[str]
    defaults: Defaults

    def chat(self, body: ChatBody) -> list[Ask]:
        """Return the asks of a chat completion.

        Raises:
            Refusal: a field asks for what cannot be had.
        """
        messages = tuple(_message(m.role, m.text) for m in body.messages)
        limit = body.max_completion_tokens or body.max_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        passed = self._passed({name: getattr(body, name) for name in _PASSED})
        return [
            self._ask(body, limit, body.stops, sample, messages, None, logprobs, body.reasoning_effort, passed)
            for sample in range(body.n or 1)
        ]

    def completion(self, body: CompletionBody) -> list[Ask]:
        """Return the asks of a text completion, those of the first prompt first; see `chat`."""
        passed = self._passed({name: getattr(body, name, None) for name in _PASSED})
        return [
            self._ask(body, body.max_tokens, body.stops, sample, (), prompt, body.logprobs, None, passed)
            for prompt in body.prompts
            for sample in range(body.n or 1)
        ]

    def responses(self, body: ResponsesBody) -> list[Ask]:
        """Return the one ask of a response; see `chat`."""
        messages = [_message("system", body.instructions)] if body.instructions else []
        if isinstance(body.input, str):
            messages.append(_message("user", body.input))
        else:
            messages += [_message(item.role, item.text) for item in body.input]
        form = body.text.format if body.text else None
        if form and form.get("type") == "json_schema":  # the chat API wraps what this one spreads out
            form = {"type": "json_schema", "json_schema": {k: v for k, v in form.items() if k != "type"}}
        fields = {name: getattr(body, name, None) for name in _PASSED}
        passed = self._passed({**fields, "response_format": form, "verbosity": body.text and body.text.verbosity})
        effort = body.reasoning.effort if body.reasoning else None
        return [self._ask(body, body.max_output_tokens, (), 0, tuple(messages), None, None, effort, passed)]

    def _passed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        asked = {name: v for name, v in fields.items() if v is not None and v not in _NOTHING.get(name, ())}
        for name in asked:
            if name not in self.passes:
                raise Refusal(
                    f"{name!r} is nothing that {self.choice.served.id!r} can do here: leave it out"
                    + (", or ask a server that can, behind `thrifty serve --upstream`" if not self.passes else ""),
                    400,
                    "unsupported_parameter",
                    name,
                )
        return asked

    def _ask(
        self,
        body: Sampling,
        limit: int | None,
        stop: tuple[str, ...],
        sample: int,
        messages: tuple[Message, ...],
        prompt: str | None,
        logprobs: int | None,
        effort: str | None,
        passed: Mapping[str, Any],
    ) -> Ask:
        served, own = self.choice.served, body.thrifty or Thrifty()
        param = ("max_output_tokens" if isinstance(body, ResponsesBody) else "max_tokens") if limit else None
        if limit and limit > served.max_tokens:
            raise Refusal(
                f"{param} is {limit}, but {served.id!r} gives {served.max_tokens} at the most: lower it",
                400,
                "invalid_value",
                param,
            )
        if effort is not None and effort not in EFFORTS:
            raise refusal(UnknownName("reasoning_effort", effort[:100], EFFORTS), "reasoning_effort")
        if effort is not None and own.budget is not None:
            raise Refusal("reasoning_effort and thrifty.budget both bound the thinking: give one of them", 400)
        if own.reserve is not None and own.reserve > (limit or served.max_tokens):
            raise Refusal("thrifty.reserve is more than max_tokens: lower it", 400, "invalid_value", "thrifty.reserve")
        try:
            settings = Settings(
                max_tokens=limit or served.max_tokens,
                thinking_budget=own.budget,
                answer_reserve=own.reserve,
                temperature=self.defaults.temperature if body.temperature is None else body.temperature,
                top_p=self.defaults.top_p if body.top_p is None else body.top_p,
                top_k=body.top_k or 0,
                min_p=body.min_p or 0.0,
                seed=secrets.randbits(31) if body.seed is None else body.seed,
                stop=stop,
            )
        except ThriftyError as error:
            raise refusal(error) from error
        return Ask(
            id=self.id,
            model=served.id,
            settings=settings,
            messages=messages,
            prompt=prompt,
            method=self.choice.method,
            limited=limit is not None,
            sample=sample,
            logprobs=logprobs,
            effort=effort,
            passed=passed,
            given=frozenset(name for name in body.model_fields_set if getattr(body, name) is not None),
        )


def explains(body: Sampling) -> bool:
    """Tell whether a client wants to know what the method did."""
    return body.thrifty is not None and body.thrifty.explain


def _message(role: str, text: str) -> Message:
    return {"role": "system" if role == "developer" else role, "content": text}
