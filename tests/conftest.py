"""Models that every test shares: a random toy with the real tokenizer, and the embedded reasoner."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test may reach for a hub

import pytest
import torch
from hypothesis import settings
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from thrifty.models import embedded_folder, load_model
from thrifty.models.torch import TorchModel

torch.set_num_threads(1)  # the tests run in a process for each core, and threads that wait for each other are slow

settings.register_profile("thrifty", deadline=None)  # shared machines stall
settings.load_profile("thrifty")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Evaluation sets that a checkout may have beside it; tests that use them skip without."""


def make_toy(dtype: torch.dtype = torch.float64, sharpness: float = 8.0, seed: int = 0) -> TorchModel:
    """Return a random two-layer model; sharp weights make it prefer some tokens clearly."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder("pebble"))
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    network = Qwen3ForCausalLM(config).to(dtype).eval()
    for parameter in network.parameters():
        if parameter.dim() == 2:
            parameter.data *= sharpness
    return TorchModel(network, tokenizer, "toy")


@pytest.fixture(scope="session")
def toy() -> TorchModel:
    return make_toy()


@pytest.fixture(scope="session")
def pebble() -> TorchModel:
    model = load_model("pebble")
    assert isinstance(model, TorchModel)
    return model


@pytest.fixture(scope="session")
def pebble64() -> TorchModel:
    """The embedded model in float64, where no batch shape changes a token."""
    model = load_model("pebble", dtype="float64")
    assert isinstance(model, TorchModel)
    return model
