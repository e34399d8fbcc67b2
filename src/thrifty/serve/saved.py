"""What a response saved: against the mean of plain responses, for nobody knows what it would have taken itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.serve.engine import Done


def spent(done: Done) -> int:
    """Return the tokens that a response took, the client's prompt apart: written, forced, probed, read by others."""
    return done.usage.total - done.prompt_tokens


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0


class VanillaMean:
    """A running mean of what plain responses of each model take.

    It is a mean over other requests: for one request the difference says little, over many their sum is what was
    saved, if plain responses are measured on a fair share of all requests (``--vanilla-share``).

    Args:
        given: what to assume until a plain response was measured, None for nothing.
    """

    def __init__(self, given: float | None = None) -> None:
        self.given = given
        self._means: dict[str, _Mean] = {}

    def observe(self, model: str, done: Done) -> None:
        """Take a plain response in.

        Args:
            model: which wrote it.
            done: its end.
        """
        mean = self._means.setdefault(model, _Mean())
        mean.total, mean.count = mean.total + spent(done), mean.count + 1

    def saved(self, model: str, dones: Sequence[Done]) -> dict[str, Any] | None:
        """Return what responses saved together, as ``usage.thrifty.saved`` tells it; None while nothing is known.

        Args:
            model: which wrote them.
            dones: their ends.
        """
        mean = self._means.get(model, _Mean())
        if not mean.count and self.given is None:
            return None
        expected = mean.total / mean.count if mean.count else float(self.given or 0.0)
        return {
            "tokens": round(expected * len(dones)) - sum(spent(done) for done in dones),
            "mean_vanilla_tokens": round(expected, 1),
            "vanilla_responses": mean.count,
            "from": "measured" if mean.count else "given",
        }
