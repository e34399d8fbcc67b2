"""How much each key may ask for: at the same time, and by the minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from thrifty.serve.errors import Refusal

Clock = Callable[[], float]
_MINUTE = 60.0
_SOON = 1.0
MOST_DEBT = 10
"""Minutes after which a key may ask again, however much it was charged beyond its limit."""


@dataclass(frozen=True)
class Limits:
    """What each key may ask for; None for as much as it likes.

    Attributes:
        concurrency: requests at the same time, those that wait in the queue included.
        requests: a minute.
        tokens: a minute: all that any model reads and writes for it.
    """

    concurrency: int | None = None
    requests: int | None = None
    tokens: int | None = None


class Bucket:
    """A minute's worth of something, that fills up again evenly.

    Args:
        size: what it holds, and what flows in within a minute.
        clock: returns seconds.

    Attributes:
        reserved: what is set aside: still in it, so that nothing flows in for it, but nobody else may have it.
    """

    def __init__(self, size: int, clock: Clock = time.monotonic) -> None:
        self.size, self._clock = size, clock
        self._level, self._at = float(size), clock()
        self.reserved = 0

    @property
    def left(self) -> float:
        """What may be taken now; negative where more was taken than it held."""
        now = self._clock()
        self._level = min(float(self.size), self._level + (now - self._at) * self.size / _MINUTE)
        self._at = now
        return self._level - self.reserved

    def wait(self, amount: float) -> float:
        """Return the seconds until as much is left; what is more than its size counts as its size."""
        return max(0.0, (min(amount, self.size) - self.left) * _MINUTE / self.size)

    def take(self, amount: float) -> None:
        """Take something out, even if it is more than is left; `MOST_DEBT` bounds what it may lack."""
        self._level = max(-MOST_DEBT * self.size, self.left + self.reserved - amount)


class Allowance:
    """What one key has left.

    Args:
        limits: what it may ask for.
        clock: returns seconds.
    """

    def __init__(self, limits: Limits, clock: Clock = time.monotonic) -> None:
        self._most = limits.concurrency
        self._requests = Bucket(limits.requests, clock) if limits.requests else None
        self._tokens = Bucket(limits.tokens, clock) if limits.tokens else None
        self.at_work = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Let a request in, which is at work while the context is open.

        Raises:
            Refusal: it is one too many.
        """
        if self._most is not None and self.at_work >= self._most:
            raise _too_many(f"{self._most} requests at the same time", _SOON)
        if self._requests is not None:
            if wait := self._requests.wait(1):
                raise _too_many(f"{self._requests.size} requests a minute", wait)
            self._requests.take(1)
        self.at_work += 1
        try:
            yield
        finally:
            self.at_work -= 1

    def reserve(self, tokens: int) -> int:
        """Set aside what a request may write; `spend` takes what it really took.

        Args:
            tokens: the most that its responses may have, and what its prompts are thought to.

        Returns:
            What to give back with `release` once it is over.

        Raises:
            Refusal: that much is not left.
        """
        if self._tokens is None:
            return 0
        if wait := self._tokens.wait(tokens):
            raise _too_many(f"{self._tokens.size} tokens a minute", wait, "lower max_tokens, or ")
        reserved = min(tokens, self._tokens.size)
        self._tokens.reserved += reserved
        return reserved

    def release(self, reserved: int) -> None:
        """Give back what `reserve` set aside."""
        if self._tokens is not None:
            self._tokens.reserved -= reserved

    def spend(self, tokens: int) -> None:
        """Take what was read and written, even if it is more than is left."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return what is left, in OpenAI's headers."""
        told = []
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                left, full = max(0, math.floor(bucket.left)), bucket.wait(bucket.size)
                told += [("limit", name, f"{bucket.size}"), ("remaining", name, f"{left}")]
                told.append(("reset", name, f"{full:.3f}s"))
        return [(f"x-ratelimit-{what}-{name}".encode(), value.encode()) for what, name, value in told]


class Allowances:
    """The allowance of each key.

    Args:
        limits: what each may ask for.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: dict[str, Allowance] = {}

    def of(self, owner: str) -> Allowance:
        """Return the allowance of a key that was let in, so that there are never more of them than keys."""
        return self._of.setdefault(owner, Allowance(self._limits))


def _too_many(limit: str, wait: float, lower: str = "") -> Refusal:
    wait = max(_SOON, math.ceil(wait))
    message = f"this key may have {limit}: {lower}try again in {wait:g} s"
    return Refusal(message, 429, "rate_limit_exceeded", retry_after=wait)
