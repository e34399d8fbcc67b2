"""Gates: the card's worked numbers, what training promises, and thresholds that part best."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from thrifty.decoding.gate import (
    Gate,
    Training,
    auroc,
    calibrate_threshold,
    evaluate,
    fit_gate,
    rare_classes,
)
from thrifty.errors import ThriftyError

TWO = ("no", "yes")


def card_gate() -> Gate:
    return Gate(
        classes=("easy", "normal", "hard"),
        layer=2,
        mean=torch.zeros(2),
        scale=torch.ones(2),
        output=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
        output_bias=torch.zeros(3),
        hidden=torch.eye(2),
        hidden_bias=torch.zeros(2),
    )


def test_worked_numbers_of_the_card_of_diffadapt() -> None:
    state = torch.tensor([[1.0, -2.0]])
    gate = card_gate()
    assert gate.logits(state).tolist() == [[1.0, 0.0, 0.0]]
    assert gate.probabilities(state)[0].tolist() == pytest.approx([0.5761, 0.2119, 0.2119], abs=1e-4)
    assert float(cross_entropy(gate.logits(state), torch.tensor([0]))) == pytest.approx(0.5514, abs=1e-4)


def test_a_gate_whose_parts_do_not_fit_is_refused() -> None:
    parts = card_gate().tensors
    with pytest.raises(ThriftyError, match="output_bias must have the shape"):
        Gate(("a", "b", "c"), 0, **{**parts, "output_bias": torch.zeros(2)})
    with pytest.raises(ThriftyError, match="hidden_bias"):
        Gate(("a", "b", "c"), 0, **{k: v for k, v in parts.items() if k != "hidden_bias"})


def rings(count: int, seed: int, rare: float = 0.5) -> tuple[Tensor, Tensor]:
    """Points of two classes that no line parts: near the origin and far from it."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < rare).long()
    angles = torch.rand(count, generator=generator) * 6.2832
    radius = 1.0 + 2.0 * labels + 0.3 * torch.randn(count, generator=generator)
    # features of very different size: without standardising, the second alone would count
    return torch.stack([radius * angles.cos(), 1000 + 500 * radius * angles.sin()], 1), labels


def test_a_hidden_layer_learns_what_a_line_cannot() -> None:
    train, validation, test = (rings(n, seed) for n, seed in ((300, 0), (100, 1), (200, 2)))
    curved = fit_gate(*train, *validation, TWO, 0, Training(width=32, seed=1))
    straight = fit_gate(*train, *validation, TWO, 0, Training(width=0, seed=1))
    good, poor = evaluate(curved, *test), evaluate(straight, *test)
    assert float(good["accuracy"] or 0.0) > 0.95
    assert float(good["auroc"] or 0.0) > 0.98
    assert float(poor["accuracy"] or 0.0) < 0.75
    assert straight.hidden is None


def test_training_is_seeded_and_leaves_the_global_generator_alone() -> None:
    data = (*rings(80, 0), *rings(30, 1))
    state = torch.random.get_rng_state()
    first = fit_gate(*data, TWO, 0, Training(width=8, epochs=5))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    again = fit_gate(*data, TWO, 0, Training(width=8, epochs=5))
    other = fit_gate(*data, TWO, 0, Training(width=8, epochs=5, seed=1))
    assert all(torch.equal(first.tensors[k], again.tensors[k]) for k in first.tensors)
    assert not torch.equal(first.output, other.output)


def test_the_gate_kept_is_the_best_on_validation_data() -> None:
    """Labels of the validation data are shuffled: training on only makes it worse there, so that it must stop."""
    features, labels = rings(200, 0)
    checked, _ = rings(100, 1)
    noise = torch.randint(0, 2, (100,), generator=torch.Generator().manual_seed(5))

    def loss(epochs: int, patience: int) -> float:
        training = Training(width=64, epochs=epochs, patience=patience, learning_rate=0.01)
        gate = fit_gate(features, labels, checked, noise, TWO, 0, training)
        return float(cross_entropy(gate.logits(checked), noise))

    assert loss(60, 60) <= loss(1, 1)


def test_balanced_training_keeps_the_probabilities_of_the_data() -> None:
    """Weighing the classes must not turn a rare class's probability into what it would be were it common."""
    train, validation, test = (rings(n, seed, rare=0.06) for n, seed in ((1500, 0), (500, 1), (1000, 2)))
    noise = torch.Generator().manual_seed(3)
    shifted = [
        (x + torch.randn(x.shape, generator=noise) * torch.tensor([3.0, 1500.0]), y)
        for x, y in (train, validation, test)
    ]
    training = Training(width=16, epochs=40, balanced=True)
    gate = fit_gate(*shifted[0], *shifted[1], TWO, 0, training)
    said = float(gate.probabilities(shifted[2][0])[:, 1].mean())
    assert said == pytest.approx(float(shifted[2][1].float().mean()), abs=0.03)


def test_classes_without_examples_and_missing_validation_are_refused() -> None:
    features, labels = rings(20, 0)
    with pytest.raises(ThriftyError, match="'third'"):
        fit_gate(features, labels, features, labels, (*TWO, "third"), 0)
    with pytest.raises(ThriftyError, match="validate"):
        fit_gate(features, labels, features[:0], labels[:0], TWO, 0)


def test_evaluation_tells_the_majority_and_nothing_where_there_is_nothing() -> None:
    gate = card_gate()
    states = torch.tensor([[5.0, 0.0], [0.0, 5.0], [6.0, 0.0], [4.0, 1.0]])
    found = evaluate(gate, states, torch.tensor([0, 1, 0, 1]))
    assert (found["n"], found["accuracy"], found["majority"]) == (4, 0.75, 0.5)
    assert evaluate(gate, states[:0], torch.zeros(0, dtype=torch.int64))["accuracy"] is None


def test_auroc_of_small_cases() -> None:
    yes = torch.tensor([False, True, False, True])
    assert auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), yes) == pytest.approx(1.0)
    assert auroc(torch.tensor([0.1, 0.2, 0.35, 0.8]), yes) == pytest.approx(0.75)
    assert auroc(torch.full((4,), 0.5), yes) == pytest.approx(0.5)
    assert auroc(torch.tensor([0.1, 0.2]), torch.tensor([True, True])) is None


SCORED = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=30)


@given(SCORED)
def test_auroc_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([float(s) for s, _ in pairs])
    positive = torch.tensor([p for _, p in pairs])
    compared = [(a > b) + 0.5 * (a == b) for a, p in pairs for b, q in pairs if p and not q]
    found = auroc(scores, positive)
    assert found == (pytest.approx(sum(compared) / len(compared)) if compared else None)


@given(SCORED, st.sampled_from(["balanced", "f1"]))
def test_the_calibrated_threshold_is_the_best_of_all(pairs: list[tuple[int, bool]], criterion: str) -> None:
    scores = torch.tensor([float(s) for s, _ in pairs])
    positive = torch.tensor([p for _, p in pairs])
    found = calibrate_threshold(scores, positive, criterion)  # type: ignore[arg-type]  # drawn from a list

    def quality(bar: float) -> float:
        right = sum(p and s > bar for s, p in pairs)
        wrong = sum(not p and s > bar for s, p in pairs)
        yes = sum(p for _, p in pairs)
        if criterion == "f1":
            return 2 * right / (right + wrong + yes)
        return (right / yes + 1 - wrong / (len(pairs) - yes)) / 2

    if positive.all() or not positive.any():
        assert found is None
        return
    assert found is not None
    assert found[1] == pytest.approx(quality(found[0]))
    rivals = {bar: quality(bar) for bar in [i / 2 for i in range(-1, 18)]}
    assert found[1] >= max(rivals.values()) - 1e-9


def test_the_highest_of_equal_thresholds_is_taken() -> None:
    found = calibrate_threshold(torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.tensor([False, True, True, True]))
    assert found == (pytest.approx(0.25), pytest.approx(1.0))
    tied = calibrate_threshold(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([False, True, False, True]))
    assert tied == (pytest.approx(2.5), pytest.approx(0.75))


def test_rare_classes_are_warned_of() -> None:
    assert rare_classes({"a": 50, "b": 50}) == []
    (warning,) = rare_classes({"a": 98, "b": 2})
    assert "'b'" in warning
    assert "2 of 100" in warning
