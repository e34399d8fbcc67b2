"""s1's budget forcing: no less thinking than a minimum, no more than a maximum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import Method, TextSteering
from thrifty.models.torch import TorchModel


class _ForceBudget(Controller):
    def __init__(self, method: S1, model: TorchModel) -> None:
        self.method = method
        self.wait = model.encode(method.extension)
        close = model.think.close
        # a closer that is one token, or the first of several
        self.enders = frozenset({model.encode(close)[0], model.encode("\n" + close)[-len(model.encode(close))]})

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        if self.method.maximum != -1:
            for row in rows:
                row.events["budget"] = self.method.maximum

    def next_input(self, rows: Sequence[Row], tokens: list[int]) -> None:
        if self.method.minimum == 0:
            return
        for i, row in enumerate(rows):
            ends = tokens[i] in self.enders or tokens[i] in row.model.eos_ids
            if not ends or row.forced or not row.thinking or row.thinking_tokens >= self.method.minimum:
                continue
            used = row.state.get(self, 0)
            if used < self.method.extensions:
                row.state[self] = row.events["s1_extensions"] = used + 1
                row.forced.extend(self.wait)

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        if self.method.maximum == -1:
            return
        for row in rows:
            if row.thinking_tokens >= self.method.maximum and row.thinking:
                row.close_thinking("s1", self.method.closing)


@dataclass(frozen=True, kw_only=True)
class S1(Method):
    """Budget forcing: an early end of thinking is replaced by "Wait", a late one is forced.

    Source: s1: Simple test-time scaling, arXiv 2501.19393, section 3.1. Follows the paper: the end of
    thinking is suppressed at most ``extensions`` times, and the forced end may carry a closing text.

    Attributes:
        minimum: thinking tokens below which the model may not stop; 0 for none.
        maximum: thinking tokens at which the thinking is closed; -1 for none.
        extension: written in place of an early end.
        extensions: how often at most.
        closing: written before the forced end.
    """

    slug: ClassVar[str] = "s1"
    minimum: int = 0
    maximum: int = 512
    extension: str = "\nWait"
    extensions: int = 2
    closing: str = ""

    def __post_init__(self) -> None:
        if self.minimum < 0 or self.maximum < -1 or self.extensions < 0:
            raise ThriftyError("s1: minimum and extensions must be at least 0, maximum at least 0 or -1 for none")
        if -1 < self.maximum < self.minimum:
            raise ThriftyError(f"s1: maximum ({self.maximum}) must not be below minimum ({self.minimum})")

    def over_text(self) -> TextSteering | None:
        if self.minimum or self.closing:  # those are written into the stream
            return None
        return TextSteering(None if self.maximum == -1 else self.maximum)

    def controllers(self, model: TorchModel) -> list[Controller]:
        return [_ForceBudget(self, model)]
