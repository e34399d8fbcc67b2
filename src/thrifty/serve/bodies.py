"""The bodies of requests: what may stand in them, and what a client is told of a field that stands wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from thrifty.serve.effort import EFFORTS
from thrifty.serve.errors import Refusal

MOST_SAMPLES = 16
"""Responses that one request may ask for."""

MOST_OPTIONS = 32
"""Options of a method that a request may give."""

_OWN = ("method", "params", "budget", "reserve", "explain")
_ABOVE = (
    "model", "messages", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "stream", "max_tokens",
    "max_completion_tokens", "reasoning_effort", "response_format", "logprobs",
)  # fmt: skip
_BUDGET = 'it belongs in `thrifty`: {"thrifty": {"budget": 200}}'
_HINTS = {
    **{name: f'it belongs in `thrifty`: {{"thrifty": {{"{name}": ...}}}}' for name in _OWN},
    **dict.fromkeys(("thinking_budget", "max_thinking_tokens", "thinking_token_budget", "budget_tokens"), _BUDGET),
    "thinking": 'say `"thrifty": {"budget": 0}` for none, or `reasoning_effort`',
    "enable_thinking": 'say `"reasoning_effort": "none"`',
    "chat_template_kwargs": 'say `"reasoning_effort": "none"` to turn thinking off',
    "reasoning": 'here it is `reasoning_effort`, as `"reasoning_effort": "low"`',
    "effort": 'it is `reasoning_effort`, as `"reasoning_effort": "low"`',
    "extra_body": "that is an argument of the Python client: its fields belong at the top of the body",
    "functions": "it was replaced by `tools`",
    "function_call": "it was replaced by `tool_choice`",
    "best_of": 'say `"thrifty": {"method": "best-of-n(samples=5)"}`',
}
"""Where a field that is not known at its place belongs."""

_MOST_MISTAKES = 100
_NAME = re.compile(r"(?!(?:str|bool|int|float)$)\w+")
"""A field in the place of an error, and not the name of an alternative that was tried."""

Text = Annotated[str, Field(max_length=1 << 24)]
Stops = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)]


def _few(params: Any) -> Any:
    """Count the options before any of them is looked at, for that takes long."""
    if isinstance(params, dict) and len(params) > MOST_OPTIONS:
        raise PydanticCustomError("too_long", f"at most {MOST_OPTIONS} options")
    return params


class Body(BaseModel):
    """What all bodies share: an unknown field is a mistake, and so is a number in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Thrifty(Body):
    """How a request is to be answered with fewer tokens."""

    method: Annotated[str | None, Field(max_length=2000, description="As `cgrs+first-try` or `cap(budget=200)`.")] = (
        None
    )
    params: Annotated[
        dict[str, bool | int | float | Annotated[str, Field(max_length=200)]] | None,
        Field(max_length=MOST_OPTIONS, description="Options of `method`, where it is a single one."),
        BeforeValidator(_few),
    ] = None
    budget: Annotated[
        int | None, Field(ge=0, le=1 << 31, description="The most tokens of thinking, over all think blocks.")
    ] = None
    reserve: Annotated[
        int | None, Field(ge=1, le=1 << 31, description="Tokens of `max_tokens` that are kept for the answer.")
    ] = None
    explain: Annotated[bool, Field(description="Whether `usage.thrifty.notes` is to say what the method did.")] = False


class Sampling(Body):
    """The fields that all ways of asking share."""

    model: Annotated[str, Field(min_length=1, max_length=2000, description="A model, or `MODEL@METHOD`.")]
    stream: bool | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0, le=1 << 20, description="0 for all.")] = None
    min_p: Annotated[float | None, Field(ge=0, lt=1)] = None
    seed: Annotated[int | None, Field(ge=-(1 << 63), lt=1 << 63)] = None
    user: Annotated[str | None, Field(max_length=1000, description="Ignored.")] = None
    metadata: Annotated[dict[str, str] | None, Field(max_length=16, description="Ignored.")] = None
    thrifty: Thrifty | None = None


class StreamOptions(Body):
    """What a stream is to tell beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=256, fail_fast=True)]
    name: Annotated[str | None, Field(max_length=200, description="Ignored.")] = None
    reasoning_content: Annotated[Text | None, Field(description="Ignored: models do not read earlier thinking.")] = None
    reasoning: Annotated[Text | None, Field(description="Ignored.")] = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Generating(Sampling):
    """What chat and text completions share."""

    n: Annotated[int | None, Field(ge=1, le=MOST_SAMPLES)] = None
    stop: Annotated[str, Field(min_length=1, max_length=256)] | Stops | None = None
    max_tokens: Annotated[int | None, Field(ge=1, description="Thinking and answer together.")] = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: Annotated[dict[str, float] | None, Field(max_length=1024)] = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatBody(Generating):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024, fail_fast=True)]
    max_completion_tokens: Annotated[int | None, Field(ge=1, description="The same as `max_tokens`.")] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    reasoning_effort: Annotated[str | None, Field(json_schema_extra={"enum": [*EFFORTS, None]})] = None
    store: Annotated[Literal[False] | None, Field(description="Nothing is stored here.")] = None
    service_tier: Annotated[Literal["auto", "default"] | None, Field(description="Ignored.")] = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]] | None, Field(max_length=256)] = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[str] | None, Field(max_length=8)] = None
    verbosity: Annotated[str | None, Field(max_length=100)] = None

    @model_validator(mode="after")
    def _agree(self) -> ChatBody:
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message is the assistant's: to continue a text, use /v1/completions")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs `logprobs`: true")
        return self


class CompletionBody(Generating):
    """The body of ``POST /v1/completions``."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_SAMPLES)]
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None
    echo: Literal[False] | None = None
    suffix: None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="after")
    def _agree(self) -> CompletionBody:
        if len(self.prompts) * (self.n or 1) > MOST_SAMPLES:
            raise ValueError(f"prompts times n make more than {MOST_SAMPLES} responses: send several requests")
        return self


class InputPart(Body):
    """A part of an item of a response's input."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Body):
    """One turn of a response's input."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[InputPart], Field(max_length=256, fail_fast=True)]
    id: Annotated[str | None, Field(max_length=200)] = None
    status: Literal["completed", "incomplete"] | None = None
    phase: Annotated[str | None, Field(max_length=100)] = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Reasoning(Body):
    """How much to think."""

    effort: Annotated[str | None, Field(json_schema_extra={"enum": [*EFFORTS, None]})] = None
    summary: Annotated[Literal["auto", "concise", "detailed"] | None, Field(description="The whole reasoning.")] = None


class ResponsesText(Body):
    """The form of the answer."""

    format: dict[str, Any] | None = None
    verbosity: Annotated[str | None, Field(max_length=100)] = None


class ResponsesBody(Sampling):
    """The body of ``POST /v1/responses``, as far as text goes."""

    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=1024, fail_fast=True)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int | None, Field(ge=1, description="Thinking and answer together.")] = None
    reasoning: Reasoning | None = None
    text: ResponsesText | None = None
    store: Annotated[Literal[False] | None, Field(description="Nothing is stored here.")] = None
    include: Annotated[list[str] | None, Field(max_length=0)] = None
    truncation: Literal["disabled"] | None = None
    tools: Annotated[list[dict[str, Any]] | None, Field(max_length=256)] = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _agree(self) -> ResponsesBody:
        if not isinstance(self.input, str) and self.input[-1].role == "assistant":
            raise ValueError("the last item of input is the assistant's: to continue a text, use /v1/completions")
        return self


B = TypeVar("B", bound=Body)


def read(kind: type[B], raw: bytes) -> B:
    """Read a body.

    Args:
        kind: of which it must be.
        raw: as it came.

    Raises:
        Refusal: it is none; the message names the field and the fix.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        if error.error_count() > _MOST_MISTAKES:  # telling them apart takes long
            raise Refusal("too much of the body is not as /openapi.json describes it", 400, "invalid_value") from None
        found = error.errors(include_url=False, include_context=False, include_input=False)
        unknown = [e for e in found if e["type"] == "extra_forbidden"]
        # of what is wrong with each alternative, the deepest tells most
        raise _explained(unknown[0] if unknown else max(found, key=lambda e: len(e["loc"]))) from None


def _explained(error: Mapping[str, Any]) -> Refusal:
    """Return what a client is told of a thing that is wrong."""
    place = [str(part) for part in error["loc"] if isinstance(part, int) or _NAME.fullmatch(part)]
    name, where = (place[-1] if place else ""), ".".join(place)
    kind, said = error["type"], str(error["msg"])
    if kind == "json_invalid":
        return Refusal(f"the body is no JSON: {said.removeprefix('Invalid JSON: ')}", 400, "invalid_json")
    if kind == "extra_forbidden":
        if place[:-1] == ["thrifty"] and name in _ABOVE:
            hint = "it belongs at the top of the body, beside `thrifty`"
        elif len(place) == 1:
            hint = _HINTS.get(name, "see /openapi.json for those that are")
        else:
            hint = "see /openapi.json for those that are"
        return Refusal(f"{_short(where)!r} is not known here: {hint}", 400, "unknown_parameter", _short(where))
    if kind == "missing":
        return Refusal(f"{_short(where)!r} is missing", 400, "missing_required_parameter", _short(where))
    if kind == "value_error":
        return Refusal(said.removeprefix("Value error, "), 400, "invalid_value", _short(where) or None)
    return Refusal(f"{_short(where) or 'the body'}: {said}", 400, "invalid_value", _short(where) or None)


def _short(text: str) -> str:
    """Return what a client wrote, short enough to be told back."""
    return text if len(text) <= 100 else text[:97] + "..."
