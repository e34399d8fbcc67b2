"""Loading Hugging Face models, and the masks of the architectures that need other ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.models import embedded_folder, load_model
from thrifty.models.torch import TorchModel

SHAPE: dict[str, Any] = {
    "vocab_size": 1088,  # padded beyond the tokenizer's 1024, as real models are
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}


def build(network: Any) -> TorchModel:
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder("pebble"))
    return TorchModel(network.double().eval(), tokenizer, "toy")


def networks() -> dict[str, Any]:
    torch.manual_seed(0)
    window = {"sliding_window": 5, "use_sliding_window": True}
    mixed = ["sliding_attention", "full_attention"]
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**SHAPE)),
        "llama-eager": LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="eager")),
        "qwen3-mixed-windows": Qwen3ForCausalLM(Qwen3Config(**SHAPE, **window, layer_types=mixed)),
        "qwen3-window-off": Qwen3ForCausalLM(Qwen3Config(**SHAPE, sliding_window=5, use_sliding_window=False)),
        "mistral-window": MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5)),
    }


@pytest.mark.parametrize("name", sorted(networks()))
def test_ragged_sessions_equal_the_network_alone(name: str) -> None:
    model = build(networks()[name])
    rows = [list(range(20, 32)), [40, 41, 42], list(range(60, 68))]
    session = Session(model)
    session.add(rows)
    session.append([[7, 8, 9], [10], []])
    session.append(torch.tensor([11, 12, 13]))
    for i, row in enumerate([[*rows[0], 7, 8, 9, 11], [*rows[1], 10, 12], [*rows[2], 13]]):
        with torch.no_grad():
            alone = model.network(torch.tensor([row]), use_cache=False).logits[0, -1, : model.vocabulary_size]
        torch.testing.assert_close(session.logits[i], alone, rtol=1e-5, atol=1e-6)
    assert model.vocabulary_size == 1024


def test_layers_whose_state_cannot_be_rewound_are_refused() -> None:
    network = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    network.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ThriftyError, match="linear_attention"):
        build(network)


def test_a_folder_loads_under_the_users_name_and_dtype() -> None:
    model = load_model(str(embedded_folder("pebble")), dtype="float64")
    assert isinstance(model, TorchModel)
    assert (model.name, model.dtype) == (str(embedded_folder("pebble")), torch.float64)
    assert model.think.name == "think"


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name, message in (("weights.bin", "not a .gguf"), ("empty", "cannot load"), ("absent", "no model")):
        with pytest.raises(ThriftyError, match=message) as mistake:
            load_model(str(tmp_path / name))
        assert "\n" not in str(mistake.value)


@pytest.mark.slow
def test_a_gguf_file_loads_and_decodes_as_generate_does() -> None:
    """Set THRIFTY_TEST_GGUF to a file, such as SmolLM2-135M-Instruct's."""
    path = os.environ.get("THRIFTY_TEST_GGUF", "")
    if not Path(path).is_file():
        pytest.skip("THRIFTY_TEST_GGUF names no file")
    model = load_model(path)
    assert isinstance(model, TorchModel)
    prompt = model.encode_prompt(model.render([{"role": "user", "content": "What is 12 + 30?"}]))
    session = Session(model)
    session.add([prompt])
    ours: list[int] = []
    for _ in range(12):
        ours.append(int(session.logits[0].argmax()))
        session.append(torch.tensor(ours[-1:]))
    theirs = model.network.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    assert ours[: len(theirs)] == theirs.tolist()
