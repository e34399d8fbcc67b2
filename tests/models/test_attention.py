"""The attention hook: what it changes, what it leaves, and that nothing of it remains."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conftest import make_toy
from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.models.attention import AttentionPolicy, Reading, attending, attention_probabilities, require_hook
from thrifty.models.torch import TorchModel

SHAPE = {"vocab_size": 700, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}


class LookOn(AttentionPolicy):
    """Sees everything and changes nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Tensor]] = []

    def watches(self, newest: bool, frozen: bool) -> bool:
        return True

    def observe(self, reading: Reading, layer: int, query: Tensor, keys: Tensor, mask: Tensor, scaling: float) -> None:
        self.seen.append((layer, attention_probabilities(query, keys, mask, scaling)))


class Broken(LookOn):
    def observe(self, *args: object) -> None:
        raise RuntimeError("broken")


class Zeros(LookOn):
    """Gives the newest tokens nothing."""

    def attend(self, reading: Reading, layer: int, query: Tensor, *args: object) -> Tensor:
        assert reading.newest
        return torch.zeros_like(query)


@torch.inference_mode()
def test_probabilities_are_those_of_eager_attention() -> None:
    model, policy = make_toy(), LookOn()
    eager = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, attn_implementation="eager")).double().eval()
    fused = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS)).double().eval()
    fused.load_state_dict(eager.state_dict())
    ids = list(range(20, 31))
    session = Session(TorchModel(fused, model.tokenizer, "toy"), policy)
    session.add([ids])
    expected = eager(torch.tensor([ids]), output_attentions=True).attentions
    assert [layer for layer, _ in policy.seen] == [0, 1]
    for layer, found in policy.seen:
        assert found.shape == (1, 2, 2, 11, 11)
        torch.testing.assert_close(found.flatten(1, 2), expected[layer].double(), rtol=1e-5, atol=1e-6)


def test_whoever_only_looks_on_changes_no_bit_and_leaves_nothing_behind(toy: TorchModel) -> None:
    plain, watched = Session(toy), Session(toy, LookOn())
    for session in (plain, watched):
        session.add([[3, 4, 5, 6], [9, 8]])
        for token in (11, 12, 13):
            session.append(torch.tensor([token, token + 1]))
    assert torch.equal(plain.logits, watched.logits)
    assert toy.network.config._attn_implementation == "sdpa"
    plain.append(torch.tensor([5, 5]))
    broken = Session(toy, Broken())
    with pytest.raises(RuntimeError, match="broken"):
        broken.add([[3, 4]])
    assert toy.network.config._attn_implementation == "sdpa"


def test_the_newest_token_gets_what_the_policy_gives_and_drafts_get_full_attention(toy: TorchModel) -> None:
    """Each row of a pass is at its newest token in position 0; what stands behind attends as without a policy."""
    outputs: dict[str, Tensor] = {}
    for name, policy in (("plain", LookOn()), ("zeros", Zeros())):
        session = Session(toy, policy)
        session.held.add([4])
        handle = toy.network.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
            lambda _, inputs, name=name: outputs.__setitem__(name, inputs[0].clone())
        )
        session._lengths, session.lengths = torch.tensor([0]), [0]
        session._pass(torch.tensor([[5, 6, 7]]), None, newest=True)
        handle.remove()
    assert not outputs["zeros"][:, 0].any()
    assert outputs["plain"][:, 0].any()
    assert torch.equal(outputs["zeros"][:, 1:], outputs["plain"][:, 1:])


def test_another_thread_attends_fully_meanwhile(toy: TorchModel) -> None:
    plain = Session(toy)
    plain.add([[3, 4, 5]])
    found: list[Tensor] = []

    def beside() -> None:
        session = Session(toy)
        session.add([[3, 4, 5]])
        found.append(session.logits)

    lengths = torch.tensor([1])
    with attending(toy.network, Broken(), Reading(plain.cache, lengths, [1], lengths, 1, newest=True)):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert torch.equal(found[0], plain.logits)


def test_models_that_the_hook_does_not_reach_are_refused(toy: TorchModel) -> None:
    require_hook(toy, "delta")
    eager = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, attn_implementation="eager"))
    with pytest.raises(ThriftyError, match="attn_implementation='sdpa'"):
        require_hook(TorchModel(eager, toy.tokenizer, "eager"), "delta")
    near = MistralForCausalLM(MistralConfig(**SHAPE, **HEADS, sliding_window=5))
    with pytest.raises(ThriftyError, match="look back 5 positions"):
        require_hook(TorchModel(near, toy.tokenizer, "near"), "delta")
    assert "sdpa" in ALL_ATTENTION_FUNCTIONS
