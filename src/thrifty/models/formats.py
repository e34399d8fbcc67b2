"""Reasoning formats: the embedded models' ones, asked for by system prompts, and ARM's, opened by tags."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.traces.trace import Message

FORMAT_PROMPTS = {
    "direct": "Answer directly.",
    "short": "Think briefly.",
    "long": "Think at length.",
    "code": "Write a program.",
    "plan": "Plan first.",
}
"""``long`` is also what the embedded models write without a system prompt."""

FORMAT_TAGS = {"direct": "<ANSWER>", "short": "<COT>", "code": "<CODE>", "long": "<LONG_COT>"}
"""The tags that open ARM's formats (arXiv 2505.20258)."""


def in_format(messages: Sequence[Message], format: str) -> tuple[Message, ...]:
    """Ask for a format by its system prompt, which follows a system prompt that is there already.

    Args:
        messages: the conversation.
        format: a key of `FORMAT_PROMPTS`.
    """
    prompt = FORMAT_PROMPTS[format]
    if messages and messages[0]["role"] == "system":
        return ({**messages[0], "content": f"{messages[0]['content']}\n\n{prompt}"}, *messages[1:])
    return ({"role": "system", "content": prompt}, *messages)


def format_of(reply: str) -> str | None:
    """Return the format whose tag opens a reply, None if none does.

    Args:
        reply: text from the assistant's marker on; blanks before the tag do not count.
    """
    reply = reply.lstrip()
    return next((name for name, tag in FORMAT_TAGS.items() if reply.startswith(tag)), None)


def knows_formats(template: str) -> bool:
    """Tell by its chat template whether a model is of the kind of the embedded ones, which are trained on the formats.

    Args:
        template: the source of the chat template.
    """
    from thrifty.models import embedded_folder

    return template.strip() == (embedded_folder("pebble") / "chat_template.jinja").read_text().strip()
