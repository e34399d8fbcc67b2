"""Servers that the tests of the gateway talk to: real ones, on a free port of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import torch

from conftest import make_toy
from thrifty.models.replay import Recording, ReplayModel
from thrifty.models.torch import TorchModel
from thrifty.serve.app import Gateway
from thrifty.serve.guard import Door
from thrifty.serve.local import LocalEngine
from thrifty.serve.saved import VanillaMean
from thrifty.serve.server import Server
from thrifty.traces.think import THINK_FORMATS


@dataclass
class Running:
    """A server at work, and how to talk to it."""

    gateway: Gateway
    engine: LocalEngine
    address: str

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=600)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return httpx.post(self.address + path, json=body, timeout=600, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.address + path, timeout=600, **options)


@contextmanager
def serving(
    model: TorchModel, door: Door | None = None, vanilla: VanillaMean | None = None, share: float = 0.0, **options: Any
) -> Iterator[Running]:
    """Serve a model while the context is open; the options are those of the engine."""
    engine = LocalEngine(model, **options)
    gateway = Gateway(engine, door, vanilla=vanilla, vanilla_share=share)
    listening = threading.Event()
    server = Server(gateway, port=0, graceful_seconds=5, ready=lambda _: listening.set())
    thread = threading.Thread(target=server.listen, daemon=True)
    thread.start()
    assert listening.wait(300)
    try:
        yield Running(gateway, engine, server.address)
    finally:
        server.should_exit = True
        thread.join(300)
        assert not thread.is_alive()


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
