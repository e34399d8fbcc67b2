"""Servers that the tests of the gateway talk to: real ones, on a free port of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from listening import Running, listening

from conftest import make_toy
from thrifty.models.replay import Recording, ReplayModel
from thrifty.models.torch import TorchModel
from thrifty.serve.app import Gateway
from thrifty.serve.guard import Door
from thrifty.serve.local import LocalEngine
from thrifty.serve.saved import VanillaMean
from thrifty.traces.think import THINK_FORMATS


@contextmanager
def serving(
    model: TorchModel, door: Door | None = None, vanilla: VanillaMean | None = None, share: float = 0.0, **options: Any
) -> Iterator[Running]:
    """Serve a model while the context is open; the options are those of the engine."""
    engine = LocalEngine(model, **options)
    gateway = Gateway(engine, door, vanilla=vanilla, vanilla_share=share)
    with listening(gateway) as running:
        yield running


def until(true: Callable[[], bool]) -> None:
    """Wait for something to come true."""
    for _ in range(60_000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come true")


class Wordy(TorchModel):
    """A model that writes words for ever: it never closes its thinking, nor ends its answer."""

    @classmethod
    def make(cls) -> Wordy:
        toy = make_toy()
        model = cls(toy.network, toy.tokenizer, "wordy")
        spelled = [model.texts.bytes_of(token).decode(errors="replace") for token in range(model.vocabulary_size)]
        model.silent = torch.tensor([not (text.isascii() and text.isalpha()) for text in spelled])
        return model

    def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
        return super().forward(*arguments, **options).masked_fill(self.silent, -1e9)


def replay(**responses: str) -> ReplayModel:
    """Return a model that answers each question with what was recorded for it."""
    recordings = [Recording(question.replace("_", " "), response) for question, response in responses.items()]
    return ReplayModel(recordings, "replay", THINK_FORMATS["think"])
