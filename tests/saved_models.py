"""Second models: in folders, for options that name one, and such as differ from a model where a test wants it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from thrifty.models.cache import RowCache
from thrifty.models.torch import Layout, TorchModel


def saved(model: TorchModel, folder: Path) -> str:
    """Write a model where `load_model` finds it, and return its name."""
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


def worse(model: TorchModel, noise: float, seed: int = 0) -> TorchModel:
    """Return a copy of a model whose matrices are off by random shares of their own spread."""
    network = deepcopy(model.network)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.dim() == 2:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.data += (noise * parameter.std() * drawn).to(parameter)
    return TorchModel(network, model.tokenizer, f"worse {model.name}")


class Tampered(TorchModel):
    """A model that finds other tokens likeliest than it would, at some positions.

    Args:
        model: which.
        wanted: the token to predict at a position of the text, given the one that it would; None to leave it.
    """

    def __init__(self, model: TorchModel, wanted: Callable[[int, int], int | None]) -> None:
        super().__init__(model.network, model.tokenizer, "tampered", model.think)
        self.wanted = wanted

    def forward(
        self,
        cache: RowCache,
        inputs: Tensor,
        lengths: Tensor,
        longest: int,
        equal: bool,
        keep: Tensor | None,
        layout: Layout | None = None,
    ) -> Tensor:
        logits = super().forward(cache, inputs, lengths, longest, equal, keep, layout).clone()
        for row, length in enumerate(lengths.tolist()):
            for place, step in enumerate(range(inputs.shape[1]) if keep is None else keep.tolist()):
                scores = logits[row, place]
                token = self.wanted(length + step + 1, int(scores.argmax()))
                if token is not None:
                    scores[token] = scores.max() + 1
        return logits
