"""DELTA's layers against a reference without pages or cache, what they really read, and their calibration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conftest import make_toy
from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.attention.delta import Delta, page_scores, place_layers, roles_of, select_pages, token_scores
from thrifty.methods.tuning import Tuning
from thrifty.models.attention import AttentionPolicy, Reading, attention_probabilities
from thrifty.models.base import Settings
from thrifty.models.cache import RowLayer
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task

SMALL = "page=4,pages=4,recent=2"


@contextmanager
def by_the_book(network: Any, prompt: int, page: int, pages: int, recent: int, roles: list[str]) -> Iterator[None]:
    """Let a network read a whole text as the card says, by masks: no cache, no pages, a loop over the tokens."""
    rho: dict[int, set[int]] = {}

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, scaling: float, **_: Any) -> Any:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        role, time = roles[module.layer_idx], query.shape[2]
        mask = torch.ones(time, time, dtype=torch.bool).tril()
        for t in range(prompt, time):
            if role == "sparse":
                mask[t] &= torch.tensor([u // page in rho[t] for u in range(time)])
        weights = (query @ key.transpose(2, 3) * scaling).masked_fill(~mask, -torch.inf).softmax(-1)
        for t in range(prompt, time):
            if role == "delta":
                count = t // page + 1
                sums = [float(weights[0, :, t, u * page : (u + 1) * page].amax(0).sum()) for u in range(count)]
                last = set(range(max(0, count - recent), count))
                others = sorted(set(range(count)) - last, key=lambda u: (-sums[u], u))
                rho[t] = last | set(others[: pages - len(last)])
        return (weights @ value).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("by_the_book", attention)
    network.config._attn_implementation = "by_the_book"
    try:
        yield
    finally:
        network.config._attn_implementation = "sdpa"


def deep(layers: int = 6, similar: float = 0.0) -> TorchModel:
    """Return a random model; ``similar`` is how much of its queries and keys a layer has from the one before it."""
    torch.manual_seed(3)
    toy = make_toy()
    config = LlamaConfig(
        vocab_size=len(toy.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    network = LlamaForCausalLM(config).double().eval()
    for parameter in network.parameters():
        if parameter.dim() == 2:
            parameter.data *= 8.0
    for layer, before in zip(network.model.layers if similar else (), [None, *network.model.layers], strict=False):
        layer.self_attn.o_proj.weight.data *= 0.02
        layer.mlp.down_proj.weight.data *= 0.02
        for name in ("q_proj", "k_proj"):
            own = getattr(layer.self_attn, name).weight
            if before is None:
                own.data *= 2.0  # attention is as peaked as that of trained models
            else:
                own.data = similar * getattr(before.self_attn, name).weight.data + (1 - similar) * own.data
    return TorchModel(network, toy.tokenizer, "deep")


def policy_of(model: TorchModel, options: str) -> AttentionPolicy:
    (method,) = get_method(f"delta({options})").parts
    policy = method.attention(model)
    assert policy is not None
    return policy


ROLES = "warm_up=1,layers=(1,4)"
"""The card's: layers 0, 1 and 4 attend to everything, 1 and 4 choose."""


def test_decoding_is_as_on_the_card() -> None:
    model, rows = deep(), [list(range(20, 33)), [40, 41, 42]]
    session = Session(model, policy_of(model, f"{SMALL},{ROLES}"))
    session.add(rows)
    prompts, found = [len(row) for row in rows], []
    for step in range(30):
        for i, row in enumerate(rows):
            row.append(100 + 7 * step % 90 + 200 * i)
        session.append(torch.tensor([row[-1] for row in rows]))
        found.append(session.logits)
    for i, row in enumerate(rows):
        roles = roles_of(6, 1, (1, 4))
        with torch.no_grad(), by_the_book(model.network, prompts[i], 4, 4, 2, list(roles)):
            logits = model.network(torch.tensor([row]), use_cache=False).logits[0, :, : model.vocabulary_size]
        torch.testing.assert_close(torch.stack([f[i] for f in found]), logits[prompts[i] :], rtol=1e-6, atol=1e-7)
        full = model.network(torch.tensor([row]), use_cache=False).logits[0, -1, : model.vocabulary_size]
        assert not torch.allclose(found[-1][i], full, rtol=1e-2), "something must have been passed over"


@pytest.mark.parametrize("options", ["pages=64", "pages=4,start=16.0"])
def test_with_all_pages_it_is_full_attention(options: str) -> None:
    model = deep()
    plain, session = Session(model), Session(model, policy_of(model, f"page=4,recent=2,{options},{ROLES}"))
    for one in (plain, session):
        one.add([list(range(20, 33)), [40, 41, 42]])
        for step in range(40):
            one.append(torch.tensor([50 + step, 90 + step]))
    torch.testing.assert_close(session.logits, plain.logits, rtol=0, atol=1e-6)


def test_beyond_the_start_everything_is_as_if_it_had_begun_there() -> None:
    """Up to three times K nothing is passed over, and what comes later depends on K alone."""
    model = deep()
    late, plain = Session(model, policy_of(model, f"{SMALL},start=3.0,{ROLES}")), Session(model)
    for step in range(56):
        for one in (late, plain):
            one.append(torch.tensor([50 + step])) if step else one.add([[5]])
        same = torch.allclose(late.logits, plain.logits, rtol=1e-9)
        assert same == (step < 48)


def test_only_the_chosen_pages_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = deep(), list[int]()
    inner = RowLayer.pages

    def counted(self: RowLayer, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        keys, values = inner(self, index, size)
        assert keys.shape == values.shape
        sizes.append(keys.shape[2])
        return keys, values

    monkeypatch.setattr(RowLayer, "pages", counted)
    session = Session(model, policy_of(model, f"{SMALL},{ROLES}"))
    session.add([list(range(20, 52))])
    for step in range(8):
        session.append(torch.tensor([60 + step]))
    assert sizes == [16] * 3 * 8, "three sparse layers read four pages of four at each of eight steps"
    account = session.held.account(0, 40)["delta"]
    entries = range(33, 41)
    assert account["full"] == 6 * sum(entries)
    assert account["attended"] == sum(3 * n + 3 * (12 + (n - 1) % 4 + 1) for n in entries)
    assert (account["kept"], account["evicted"]) == (40, 0)


class Recall(AttentionPolicy):
    """How much attention of each layer falls on the pages that layer 0 would have chosen, and on random ones."""

    def __init__(self) -> None:
        self.found: dict[int, list[tuple[float, float]]] = {}

    def watches(self, newest: bool, frozen: bool) -> bool:
        return newest

    def observe(self, reading: Reading, layer: int, query: Tensor, keys: Tensor, mask: Tensor, scaling: float) -> None:
        heads = attention_probabilities(query, keys, mask, scaling)[:, :, :, 0].flatten(1, 2)
        if not layer:
            scores = page_scores(token_scores(heads), 4)
            count = torch.tensor([scores.shape[1]])
            noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(reading.stored[0]))
            kept = count.clamp(max=4)
            reading.scratch = [select_pages(s, count, kept, 1, int(kept)) for s in (scores, noise.double())]
        mass = page_scores(heads.mean(1), 4)[0]
        chosen, at_random = (float(mass[pages[0]].sum()) for pages in reading.scratch)
        self.found.setdefault(layer, []).append((chosen, at_random))


def test_recall_falls_with_the_distance_from_the_layer_that_chose() -> None:
    policy, model = Recall(), deep(8, similar=0.9)
    session = Session(model, policy)
    session.add([list(range(20, 60))])
    for step in range(40):
        session.append(torch.tensor([100 + 13 * step % 300]))
    chosen, at_random = torch.tensor([policy.found[layer] for layer in range(8)]).mean(1).T.tolist()
    assert chosen == sorted(chosen, reverse=True)
    assert min(chosen) > max(at_random)


def test_more_pages_err_less_and_chosen_ones_less_than_random_or_recent_ones() -> None:
    """Where layers attend alike, as in trained models: distance from full attention's distributions."""
    model = deep(8, similar=0.97)

    def error(options: str) -> float:
        sessions = Session(model), Session(model, policy_of(model, f"page=4,warm_up=1,layers=(0,4),{options}"))
        total = 0.0
        for session in sessions:
            session.add([list(range(20, 60)), list(range(300, 340))])
        for step in range(24):
            for session in sessions:
                session.append(torch.tensor([100 + 13 * step % 300, 90 + 17 * step % 300]))
            full, sparse = (torch.log_softmax(session.logits, -1) for session in sessions)
            total += float((full.exp() * (full - sparse)).sum())
        return total

    errors = [error(f"pages={pages},recent=1") for pages in (2, 4, 8, 32)]
    assert errors[0] > errors[1] > errors[2] > errors[3] == pytest.approx(0, abs=1e-9)
    assert errors[1] < error("pages=4,recent=1,selector=random")
    assert errors[1] < error("pages=4,recent=4"), "a sliding window"


def test_tuning_places_the_layers(tmp_path: Path) -> None:
    model = deep()
    settings = Settings(max_tokens=10, batch_size=10)
    artefact = Delta.tune(Tuning("delta", model, load_task("mix"), settings, 10, {"warm_up": 1, "count": 2}))
    distances = [artefact.report["distance_to_the_layer_before"][str(layer)] for layer in range(1, 6)]
    assert all(0 <= d <= 1 for d in distances)
    assert len(set(distances)) == 5
    assert artefact.values["layers"] == list(place_layers(distances, 1, 2))
    assert artefact.report["steps"] > 50
    path = artefact.save(tmp_path / "layers.json")[0]
    tuned = Delta(calibration=str(path), warm_up=1)
    tuned.check(model)
    assert tuned.roles(6) == roles_of(6, 1, artefact.values["layers"])
    with pytest.raises(ThriftyError, match="made with warm_up=1"):
        Delta(calibration=str(path)).check(model)
    with pytest.raises(ThriftyError, match="weights"):
        tuned.check(make_toy())
