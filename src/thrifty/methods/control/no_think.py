"""NoThinking: an empty think block, then the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.row import Row
from thrifty.methods.base import Method, TextSteering
from thrifty.models.torch import TorchModel


class _CloseAtOnce(Controller):
    def __init__(self, thought: str) -> None:
        self.thought = thought

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            opener = "" if row.phase == "thinking" else row.model.think.force_open
            row.close_thinking("no-think", opener + self.thought)


@dataclass(frozen=True, kw_only=True)
class NoThinking(Method):
    """Begin the answer without thinking: the think block is written empty, or with one fixed thought.

    Source: Reasoning Models Can Be Effective Without Thinking, arXiv 2504.09858. The paper writes a
    dummy thought, "Okay, I think I have finished thinking."; the default here is the empty block that
    Qwen3's and most later templates use.

    Attributes:
        thought: what stands in the block.
    """

    slug: ClassVar[str] = "no-think"
    thought: str = ""

    def over_text(self) -> TextSteering | None:
        return None if self.thought else TextSteering(budget=0)

    def controllers(self, model: TorchModel) -> list[Controller]:
        return [_CloseAtOnce(self.thought)]
