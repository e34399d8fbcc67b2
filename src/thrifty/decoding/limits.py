"""The limits that hold for every method: ends, lengths, budgets, stop strings and loops."""

from __future__ import annotations

from thrifty.decoding.row import Row
from thrifty.traces.repetition import repeats

LOOP_CHECK_EVERY = 32
"""Tokens between two looks for a repetition loop."""


def limit(row: Row) -> None:
    """Stop a row, or close its thinking, where its newest token reaches a limit.

    Args:
        row: which has written at least one token.
    """
    if row.stopped:
        return
    settings, written = row.settings, len(row.ids)
    if row.ids[-1] in row.model.eos_ids and not row.forced:
        row.stopped = "eos"
    elif written >= settings.max_tokens:
        row.stopped = "max_tokens"
    elif len(row.prompt_ids) + written >= row.model.context_length:
        row.stopped = "context"
    elif row.phases.phase == "thinking":
        _limit_thinking(row, written)
    elif settings.stop and row.phases.phase == "answer" and not row.forced:
        _stop_strings(row)
    elif settings.loop_stop and written % LOOP_CHECK_EVERY == 0 and repeats(row.ids):
        row.stopped = "loop"


def _limit_thinking(row: Row, written: int) -> None:
    settings = row.settings
    if row.closing is not None:
        return
    room = min(settings.max_tokens, row.model.context_length - len(row.prompt_ids))
    reserve = min(settings.reserve, room // 2)
    if settings.thinking_budget is not None and row.thinking_tokens >= settings.thinking_budget:
        row.close_thinking("budget")
    elif reserve and written + reserve + row.model.close_length >= room:
        row.close_thinking("limit")
    elif settings.loop_stop and written % LOOP_CHECK_EVERY == 0 and repeats(row.ids):
        row.close_thinking("loop")


def _stop_strings(row: Row) -> None:
    settings = row.settings
    start = max(row.answer_start, len(row.ids) - max(map(len, settings.stop)) - 1)
    tail = row.text(start)
    if row.phases.closed and start == row.answer_start:
        tail = tail.lstrip()  # the blanks behind a closer are not an answer yet
    if any(s in tail for s in settings.stop):
        row.stopped = "stop"
