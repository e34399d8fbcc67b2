"""The plain network equals transformers' Qwen3, its export loads there, and a killed run loses nothing."""

from __future__ import annotations

import argparse
import json
import shutil
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import data
import train
from network import Network, Shape, attend_short
from thrifty.models import embedded_folder

TOKENIZER = embedded_folder("pebble") / "tokenizer.json"


def small(vocab_size: int = 50) -> Network:
    """Return a network whose norms and projections all matter."""
    torch.manual_seed(5)
    network = Network(
        Shape(
            vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=48,
            max_position_embeddings=256,
            rope_theta=5000.0,
        )
    )
    for parameter in network.parameters():
        # about 1 for norms, and matrices large enough for attention to be uneven
        parameter.data = torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1)
    return network.eval()


def logits_of(network: Network, ids: torch.Tensor) -> torch.Tensor:
    return F.linear(network(ids), network.model.embed_tokens.weight)


@torch.no_grad()
def test_logits_are_those_of_transformers() -> None:
    network = small()
    reference = Qwen3ForCausalLM(Qwen3Config(**network.shape.transformers_config())).eval()
    missing, unexpected = reference.load_state_dict(network.state_dict(), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied to the embedding
    ids = torch.randint(50, (3, 40))
    ours, theirs = logits_of(network, ids), reference(ids).logits
    assert theirs.std() > 1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_short_rows_attend_like_long_ones() -> None:
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 4, 9, 16), torch.randn(3, 2, 9, 16), torch.randn(3, 2, 9, 16)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(attend_short(q, k, v), expected)


@torch.no_grad()
def test_the_loss_counts_targets_only() -> None:
    network = small()
    ids, targets = torch.randint(50, (2, 12)), torch.randint(50, (2, 12))
    targets[0, 3:] = targets[1, 1:] = -100
    logits = logits_of(network, ids)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    torch.testing.assert_close(network.loss(ids, targets), expected)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing() -> None:
    network = small()
    ids = torch.randint(50, (1, 20))
    padded = torch.cat([ids[:, :12], torch.zeros(1, 8, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(network(padded)[:, :12], network(ids)[:, :12])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Path]:
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    network = small(tokenizer.get_vocab_size())
    out = tmp_path_factory.mktemp("pebble")
    train.export(network, tokenizer, out)
    return network, out


@torch.no_grad()
def test_an_export_is_a_transformers_model(exported: tuple[Network, Path]) -> None:
    network, out = exported
    model = AutoModelForCausalLM.from_pretrained(out)
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.dtype == torch.float32
    assert (model.config.eos_token_id, model.config.pad_token_id, model.config.bos_token_id) == (1, 0, None)
    assert (model.generation_config.eos_token_id, model.generation_config.do_sample) == (1, False)
    rounded = deepcopy(network).half().float()  # the folder holds half precision
    ids = torch.randint(model.config.vocab_size, (2, 30))
    torch.testing.assert_close(model(ids).logits, logits_of(rounded, ids), atol=1e-4, rtol=0)


def test_an_export_holds_half_precision(exported: tuple[Network, Path]) -> None:
    weights = load_file(exported[1] / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    assert "lm_head.weight" not in weights


def test_the_chat_template_renders_the_prompts_of_the_training(exported: tuple[Network, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported[1])
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|end|>", "<|pad|>", 256)
    chosen, *_ = data.Documents(1).lesson(0)
    messages = [{"role": "user", "content": chosen.question}]
    render = partial(tokenizer.apply_chat_template, tokenize=False)
    prompt = render(messages, add_generation_prompt=True)
    assert prompt == data.prompt_of(chosen.question)
    assert tokenizer.encode(prompt) == data.encode(Tokenizer.from_file(str(TOKENIZER)), [(prompt, False)])[0]
    silent = render(messages, add_generation_prompt=True, enable_thinking=False)
    assert silent == prompt + "</think>\n\n"
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
    ]
    turns = "<|system|>Be brief.<|end|>\n<|user|>1+1?<|end|>\n<|assistant|>2"
    assert render(conversation) == turns + "<|end|>\n"
    assert render(conversation, continue_final_message=True) == turns


def test_learning_rate_factor() -> None:
    # warm-up over 1%, constant, linear decay over the last 30%, never below 2%
    points = {0.0: 0.02, 0.005: 0.5, 0.01: 1.0, 0.5: 1.0, 0.7: 1.0, 0.85: 0.5, 1.0: 0.02, 1.1: 0.02}
    assert {done: train.learning_rate_factor(done) for done in points} == pytest.approx(points)


class Killed(Exception):
    pass


def arguments(out: Path) -> argparse.Namespace:
    shutil.copy(TOKENIZER, out / "tokenizer.json")  # training one takes half a minute
    return argparse.Namespace(
        out=str(out),
        tokens=9000,
        batch_tokens=1024,
        hidden=128,
        layers=1,
        lr=1e-2,
        seed=1,
        checkpoint_seconds=0.0,
        tokenizer=None,
        workers=0,
    )


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # half precision meets norm weights
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_after = 0

    class Few(data.Pools):
        """Pools of 4 documents, after each of which a checkpoint is written."""

        def __init__(self, seed: int, tokenizer: str, tokens: int) -> None:
            super().__init__(seed, tokenizer, tokens, size=4)

        def __getitem__(self, pool: int) -> list[data.Batch]:
            if pool == kill_after > 0:
                raise Killed
            return super().__getitem__(pool)

    monkeypatch.setattr(train, "Pools", Few)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # sums on a GPU come in no fixed order
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    straight.mkdir()
    resumed.mkdir()
    train.train(arguments(straight))
    kill_after = 3
    with pytest.raises(Killed):
        train.train(arguments(resumed))
    before = torch.load(resumed / "checkpoint.pt", weights_only=True)["counters"]
    assert 0 < before["tokens"] < 9000
    assert before["pool"] == 3 == len((resumed / "log.jsonl").read_text().splitlines())
    kill_after = 0
    train.train(arguments(resumed))

    first, second = load_file(straight / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert not torch.equal(first["model.norm.weight"], torch.ones(128, dtype=torch.float16))  # it did learn
    rows = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (straight, resumed)]
    assert [(r["tokens"], r["pool"], r["loss"]) for r in rows[0]] == [
        (r["tokens"], r["pool"], r["loss"]) for r in rows[1]
    ]
