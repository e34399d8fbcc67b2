"""The router: its network by hand, what it learns, how its threshold is chosen, and that it survives a file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.router import (
    DIVERGENT,
    IDENTICAL,
    NEUTRAL,
    Examples,
    Router,
    RouterTraining,
    choose_threshold,
    divergence,
    evaluate_router,
    fit_router,
    positive_weight,
    rates,
    top_logits,
)
from thrifty.errors import ThriftyError
from thrifty.models.torch import TorchModel

D, K = 32, 5


def inputs(count: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, token = torch.randn(2, count, D, generator=generator)
    return hidden, token, top_logits(torch.randn(count, 40, generator=generator), K)


def test_the_paper_s_router_has_56_million_parameters() -> None:
    with torch.device("meta"):
        router = Router(1536)
    assert 56.0e6 < sum(p.numel() for p in router.parameters()) < 56.5e6


@pytest.mark.parametrize("normalise", [False, True])
def test_the_network_is_the_card_s(normalise: bool) -> None:
    router = Router(D, 16, 2, K, normalise=normalise).eval()
    hidden, token, top = inputs()
    p = dict(router.named_parameters())
    assert {name: float(t.detach().abs().sum()) for name, t in p.items() if name.endswith("bias")} == pytest.approx(
        {name: 0.0 for name in p if name.endswith("bias")}
    )
    given = (hidden, token, top)
    if normalise:
        hidden, token, top = layer_norm(hidden, (D,)), layer_norm(token, (D,)), top.softmax(-1)
    x = torch.cat([hidden, token, top @ p["scores.weight"].T], -1) @ p["combine.weight"].T @ p["enter.weight"].T
    for i in range(2):
        inner = gelu(layer_norm(x, (16,)) @ p[f"blocks.{i}.inner.weight"].T)
        assert inner.shape[1] == 64
        x = x + inner @ p[f"blocks.{i}.outer.weight"].T
    expected = layer_norm(x, (16,)) @ p["head.weight"].T
    torch.testing.assert_close(router(*given), expected)
    torch.testing.assert_close(router.probabilities(*given), expected[:, 0].sigmoid())


def test_three_classes_tell_divergence_by_the_last() -> None:
    router = Router(D, 16, 1, K, classes=3).eval()
    logits = router(*inputs())
    torch.testing.assert_close(router.probabilities(*inputs()), logits.softmax(-1)[:, 2])
    assert DIVERGENT == 2


def test_logits_are_given_largest_first() -> None:
    assert top_logits(torch.tensor([[1.0, 3.0, -2.0, 2.0]]), 3).tolist() == [[3.0, 2.0, 1.0]]


def planted(model: TorchModel, count: int, seed: int) -> Examples:
    """Tokens that are divergent where the first logit leads by little and the token is even."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 40, (count,), generator=generator)
    top = torch.randn(count, K, generator=generator).sort(-1, descending=True).values
    close = top[:, 0] - top[:, 1] < 0.5
    labels = torch.where(close, torch.where(tokens % 2 == 0, DIVERGENT, NEUTRAL), IDENTICAL)
    return Examples(torch.randn(count, model.hidden_size, generator=generator), tokens, top, labels)


@pytest.fixture(scope="module")
def fitted(toy: TorchModel) -> dict[int, Router]:
    train, validation = planted(toy, 1500, 1), planted(toy, 300, 2)
    training = RouterTraining(learning_rate=2e-3, batch_size=128, epochs=12, patience=4)
    return {
        classes: fit_router(partial(Router, D, 24, 1, K, classes), toy, train, validation, training)
        for classes in (1, 3)
    }


@pytest.mark.parametrize("classes", [1, 3])
def test_it_learns_from_tokens_and_logits(classes: int, fitted: dict[int, Router], toy: TorchModel) -> None:
    test = planted(toy, 600, 3)
    positive = test.labels == DIVERGENT
    chances = divergence(fitted[classes], toy, test)
    found = evaluate_router(chances, positive, choose_threshold(chances, positive))
    assert found["n"] == 600
    assert found["auroc"] is not None
    assert found["auroc"] > 0.85
    assert found["recall"] is not None
    assert found["recall"] >= 0.95
    assert found["routed"] is not None
    assert found["routed"] < 0.75
    assert not fitted[classes].training
    assert not any(p.requires_grad for p in fitted[classes].parameters())


def test_the_training_is_a_function_of_its_seed(toy: TorchModel) -> None:
    train, validation, make = planted(toy, 200, 1), planted(toy, 60, 2), partial(Router, D, 8, 1, K)
    found = []
    for seed in (0, 0, 1):
        training = RouterTraining(learning_rate=1e-3, batch_size=64, epochs=2, seed=seed)
        found.append(divergence(fit_router(make, toy, train, validation, training), toy, validation))
        torch.rand(1)  # the state of the global generator decides nothing
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_without_tokens_there_is_nothing_to_train(toy: TorchModel) -> None:
    none = planted(toy, 4, 0).take(slice(0))
    for pair in ((none, planted(toy, 4, 0)), (planted(toy, 4, 0), none)):
        with pytest.raises(ThriftyError, match="--limit"):
            fit_router(partial(Router, D, 8, 1, K), toy, *pair, RouterTraining())


def test_weights_of_divergent_tokens() -> None:
    labels = torch.tensor([IDENTICAL, IDENTICAL, NEUTRAL, DIVERGENT])
    assert positive_weight(labels) == 3.0
    assert positive_weight(labels, 2.0) == 6.0
    assert positive_weight(labels[:3]) == positive_weight(labels[3:]) == 1.0


def test_threshold_search_of_the_card() -> None:
    probabilities, positive = torch.tensor([0.9, 0.8, 0.3, 0.1]), torch.tensor([True, True, False, False])
    threshold = choose_threshold(probabilities, positive)
    assert 0.3 < threshold <= 0.8
    assert threshold == pytest.approx(0.01 + 30 * 0.98 / 99)  # the first of the scanned values above .3
    assert rates(probabilities, positive, threshold) == {"routed": 0.5, "recall": 1.0, "false_share": 0.0}
    assert rates(torch.tensor([0.2, 0.5, 0.7]), positive[:3], 0.5)["routed"] == pytest.approx(2 / 3)


def test_where_no_threshold_is_good_enough_it_is_one_half() -> None:
    upside_down = torch.tensor([0.1, 0.2, 0.8, 0.9])
    positive = torch.tensor([True, True, False, False])
    assert choose_threshold(upside_down, positive) < 0.1
    assert choose_threshold(upside_down, positive, max_false_share=0.1) == 0.5
    assert choose_threshold(upside_down, torch.zeros(4, dtype=torch.bool)) == 0.5
    assert evaluate_router(upside_down[:0], positive[:0], 0.5) == {"n": 0, "auroc": None}
    assert evaluate_router(upside_down, positive & False, 0.5)["recall"] is None


def test_a_router_comes_back_from_a_file(fitted: dict[int, Router], toy: TorchModel, tmp_path: Path) -> None:
    for router in fitted.values():
        values = {"sizes": router.sizes, "normalise": router.normalise}
        made = Artefact("r2r", identity(toy), values=values, networks={"router": router.state_dict()})
        assert [p.name for p in made.save(tmp_path / "r.json")] == ["r.json", "r.safetensors"]
        back = Artefact.load(tmp_path / "r.json", "r2r")
        again = Router.restored(back.values["sizes"], back.values["normalise"], back.networks["router"])
        torch.testing.assert_close(again.probabilities(*inputs()), router.probabilities(*inputs()))
        assert not again.training
        with pytest.raises(ThriftyError, match="tune it again"):
            Router.restored({**router.sizes, "width": 8}, router.normalise, back.networks["router"])
