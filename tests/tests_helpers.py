"""Stand-ins that several tests share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from thrifty.catalogue import Need
from thrifty.decoding.gate import Gate
from thrifty.decoding.session import Session
from thrifty.decoding.verifier import CLASSES, Verifier
from thrifty.models.base import Settings, TextModel
from thrifty.models.torch import TorchModel


class TextOnly(TextModel):
    """A backend that gives text and must not be asked for any."""

    gives: ClassVar[Need] = Need.TEXT
    name = "text-only"

    def respond(self, jobs: Any, settings: Settings, method: str = "vanilla") -> Any:
        raise AssertionError("a method that needs more than text must be refused before any work")


def random_verifier(model: TorchModel, layer: int, calibration: dict[str, Any] | None = None) -> Verifier:
    """Return a verifier of a model whose scores spread over (0, 1) and mean nothing."""
    session = Session(model)
    with session.tap([layer]):
        session.add([model.encode("So the answer is 12.\n")])
    scale = session.hidden[layer][0].abs().float().mean().repeat(model.hidden_size)
    direction = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(layer)) / model.hidden_size**0.5
    output = torch.stack([torch.zeros_like(direction), direction])
    gate = Gate(CLASSES, layer, torch.zeros_like(scale), scale, output, torch.zeros(2))
    return Verifier.of(model, gate, calibration)
