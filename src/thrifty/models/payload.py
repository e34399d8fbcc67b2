"""What OpenAI-compatible servers send, in all the shapes in which they send it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.traces.trace import Usage

CHARACTERS_PER_TOKEN = 4.0
"""What stands in for a tokenizer where a server counts nothing."""

_MOST_TOKENS = 1 << 40


class Unreadable(ValueError):
    """An answer that is none of this API."""


def choice_of(payload: Any, optional: bool = False) -> dict[str, Any]:
    """Return the first choice of an answer or an event; some servers send errors under a status of success.

    Args:
        payload: as it came.
        optional: whether there may be none, which is then empty.

    Raises:
        Unreadable: it is none, or tells an error.
    """
    if not isinstance(payload, dict):
        raise Unreadable("not an object")
    if payload.get("object") == "error":  # as vLLM tells it
        raise Unreadable(f"it says: {payload.get('message')}")
    if error := payload.get("error"):
        raise Unreadable(f"it says: {error.get('message', error) if isinstance(error, dict) else error}")
    choices = payload.get("choices")
    if optional and not choices:
        return {}
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unreadable("no choices in it")
    return choices[0]


def texts_of(choice: Mapping[str, Any], part: str) -> tuple[str, str]:
    """Return the reasoning and the content of a choice.

    Args:
        choice: of an answer or an event.
        part: ``message`` or ``delta``, which hold them in the chat API; in the other one it is the choice itself.

    Raises:
        Unreadable: they are no texts.
    """
    message = choice.get(part) if part in choice else {"content": choice.get("text")}
    if not isinstance(message, dict):
        raise Unreadable(f"a {part} that is no object")
    return _text(message.get("reasoning_content") or message.get("reasoning")), _text(message.get("content"))


def usage_of(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the usage that a server tells, empty where it tells none."""
    usage = payload.get("usage")
    return usage if isinstance(usage, dict) else {}


def count_of(usage: Mapping[str, Any], name: str) -> int | None:
    """Return a count of tokens that a server tells, None where it tells none that can be meant.

    Args:
        usage: as the server told it.
        name: of the count.
    """
    value = usage.get(name)
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def account(
    told: Mapping[str, Any], prompt: int, thinking: int, answer: int, written: int | None = None
) -> tuple[Usage, dict[str, Any]]:
    """Return the usage of a response as far as the server tells it, and marks for what had to be estimated.

    Args:
        told: the server's usage, perhaps empty.
        prompt: characters of the prompt.
        thinking: likewise.
        answer: likewise.
        written: estimate of the tokens of the response, None for one by its characters.
    """
    events: dict[str, Any] = {}
    read, generated = count_of(told, "prompt_tokens"), count_of(told, "completion_tokens")
    total = count_of(told, "total_tokens")
    if read is None or generated is None:
        events["usage_estimated"] = True
    if read is None:
        read = estimate(prompt)
    elif generated is not None and total is not None:
        generated = max(generated, total - read)  # some vendors leave the reasoning out of the completion
    if generated is None:
        generated = estimate(thinking + answer) if written is None else written
    details = told.get("completion_tokens_details")
    reasoned = count_of(details, "reasoning_tokens") if isinstance(details, Mapping) else None
    # Servers that lose track of a prompt-opened block report 0 reasoning tokens beside a long reasoning.
    if reasoned is not None and (reasoned or not thinking):
        return Usage(prompt=read, thinking=reasoned, answer=max(generated - reasoned, 0)), events
    if not thinking:
        return Usage(prompt=read, answer=generated), events
    events["thinking_tokens_estimated"] = True
    spent = round(generated * thinking / (thinking + answer))
    return Usage(prompt=read, thinking=spent, answer=generated - spent), events


def estimate(characters: int) -> int:
    """Return about how many tokens a text has."""
    return -int(-characters // CHARACTERS_PER_TOKEN)


def logprobs_of(choice: Mapping[str, Any]) -> list[float]:
    """Return the log-probabilities of the chosen tokens, in the shape of either API."""
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        return []
    tokens = found.get("content")
    values = [t.get("logprob") for t in tokens if isinstance(t, dict)] if isinstance(tokens, list) else None
    values = found.get("token_logprobs") if values is None else values
    return [float(v) for v in values or [] if isinstance(v, int | float)]


def model_names(payload: Any) -> list[str]:
    """Return the names that a list of models holds.

    Raises:
        ValueError: it is no such list.
    """
    listed = payload.get("data") if isinstance(payload, dict) else None
    names = [m.get("id") for m in listed if isinstance(m, dict)] if isinstance(listed, list) else None
    if names is None:
        raise ValueError("no list of models")
    return [name for name in names if isinstance(name, str) and name.isprintable()]


def _text(value: Any) -> str:
    if not isinstance(value, str | None):
        raise Unreadable("a content that is not text")
    return (value or "").encode("utf-8", "replace").decode("utf-8")  # a lone surrogate could not be stored
