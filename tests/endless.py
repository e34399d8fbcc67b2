"""A model for tests of what methods do to a thought: it never ends one, nor a response, of its own accord."""

from __future__ import annotations

import torch

from conftest import make_toy
from thrifty.models.torch import TorchModel


def make_endless() -> TorchModel:
    """Return the random toy, in which no token is the end and the think markers are unlikely."""
    model = make_toy()
    model.eos_ids = frozenset()
    markers = [model.encode(marker)[0] for marker in (model.think.open, model.think.close)]
    with torch.no_grad():
        model.network.lm_head.weight[markers] = 0.0
    return model
