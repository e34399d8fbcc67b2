"""What ``reasoning_effort`` means here: a share of the response that the thinking may take, more from word to word."""

from __future__ import annotations

import re
from collections.abc import Sequence

from thrifty.errors import UnknownName
from thrifty.traces.trace import Message

AUTO = "auto"
SHARES: dict[str, float | None] = {
    "none": 0.0,
    "minimal": 1 / 16,
    "low": 1 / 8,
    "medium": 1 / 4,
    "high": 1 / 2,
    "xhigh": None,
}
"""The share of `max_tokens` that the thinking may take; None for all that the answer's reserve leaves."""
EFFORTS = (*SHARES, AUTO)

_WORDS = 40
_NUMBERS = 4
_LEVELS = ((1.0, "low"), (3.0, "medium"))


def budget(effort: str, max_tokens: int) -> int | None:
    """Return the most tokens that the thinking may have, None for no limit of its own.

    Args:
        effort: a word of `SHARES`.
        max_tokens: of the response.

    Raises:
        UnknownName: there is no such word.
    """
    if effort not in SHARES:
        raise UnknownName("reasoning_effort", effort, EFFORTS)
    share = SHARES[effort]
    return None if share is None else int(share * max_tokens)


def difficulty(messages: Sequence[Message]) -> str:
    """Return the effort that ``auto`` stands for where no trained probe tells more.

    A question counts a point for every 40 words and one for every 4 numbers in it: below one point it gets ``low``,
    below three ``medium``, else ``high``.

    Args:
        messages: the conversation, of which the last one is the question.
    """
    question = messages[-1]["content"] if messages else ""
    points = len(question.split()) / _WORDS + len(re.findall(r"\d+", question)) / _NUMBERS
    return next((word for limit, word in _LEVELS if points < limit), "high")
