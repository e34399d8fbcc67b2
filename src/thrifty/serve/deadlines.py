"""An end to waiting: thinking is closed in time to answer, and what is not answered by then is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from thrifty.serve.answering import Answering
from thrifty.serve.errors import DEADLINE, Refusal

THINKING_SHARE = 0.8
"""Of the time that a request has: when it is over, the thinking is closed, and the rest is for the answer."""


@dataclass(frozen=True)
class Deadlines:
    """How long a request may take; None for as long as it likes.

    Attributes:
        first_token: seconds until work on a response begins; it waits in a queue, or for another server.
        total: seconds until it is complete.
    """

    first_token: float | None = None
    total: float | None = None

    def watch(self, answering: Answering) -> Callable[[], None]:
        """Hold a request to it.

        Args:
            answering: what is being answered.

        Returns:
            What ends the watch.
        """
        timers: list[asyncio.TimerHandle] = []
        if self.total is not None:
            late = Refusal(f"there was no answer within {self.total:g} s: ask for fewer tokens", 504, DEADLINE)
            timers += end_within(answering, self.total, late)
        if self.first_token is not None:
            loop = asyncio.get_running_loop()
            timers.append(loop.call_later(self.first_token, _give_up, answering, self.first_token))

        def cancel() -> None:
            for timer in timers:
                timer.cancel()

        return cancel


def end_within(answering: Answering, seconds: float, error: Refusal) -> list[asyncio.TimerHandle]:
    """Have a request close its thinking in time, and cut it in the end.

    Args:
        answering: what is being answered.
        seconds: that it has from now on.
        error: see `Answering.cut`.

    Returns:
        The timers that do so.
    """
    loop = asyncio.get_running_loop()
    return [
        loop.call_later(THINKING_SHARE * seconds, answering.finish),
        loop.call_later(seconds, answering.cut, error),
    ]


def _give_up(answering: Answering, seconds: float) -> None:
    if not answering.begun:
        text = f"the request waited for more than {seconds:g} s: try again later"
        answering.cut(Refusal(text, 503, "first_token_deadline", retry_after=seconds))
