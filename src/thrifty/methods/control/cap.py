"""The plain cap: stop thinking after so many tokens. The baseline that every method has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import Method, TextSteering
from thrifty.models.torch import TorchModel


class _CloseAtBudget(Controller):
    def __init__(self, budget: int) -> None:
        self.budget = budget

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.events["budget"] = self.budget
            if self.budget == 0 and row.phase == "thinking":
                row.close_thinking("cap")

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if row.thinking_tokens >= self.budget and row.thinking:
                row.close_thinking("cap")


@dataclass(frozen=True, kw_only=True)
class Cap(Method):
    """Close the thinking after a fixed number of tokens and let the model answer.

    Attributes:
        budget: thinking tokens over all think blocks of a response; -1 for no limit.
    """

    slug: ClassVar[str] = "cap"
    budget: int = 256

    def __post_init__(self) -> None:
        if self.budget < -1:
            raise ThriftyError("cap: budget must be at least 0, or -1 for no limit")

    def over_text(self) -> TextSteering:
        return TextSteering(None if self.budget == -1 else self.budget)

    def controllers(self, model: TorchModel) -> list[Controller]:
        return [] if self.budget == -1 else [_CloseAtBudget(self.budget)]
