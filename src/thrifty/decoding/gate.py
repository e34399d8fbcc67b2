"""Small trained gates: classifiers on hidden states that tell a method when, or how, to interfere.

A gate is one or two layers on top of a model that stays as it is. It is trained in seconds on a CPU, and a
method reads it where the hidden states pass by anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from thrifty.errors import ThriftyError

RARE = 0.05
"""Share of the data below which a class is worth a warning."""


@dataclass(frozen=True)
class Gate:
    """A linear classifier, or one with a hidden layer, on standardised features.

    Attributes:
        classes: their names, in the order of the outputs.
        layer: of the model whose hidden states are the features; 0 for the embeddings.
        mean: of the training features, float32 ``(features,)``.
        scale: their standard deviations, float32 ``(features,)``.
        output: weights float32 ``(classes, width)``, or ``(classes, features)`` without a hidden layer.
        output_bias: float32 ``(classes,)``.
        hidden: weights float32 ``(width, features)``, None without a hidden layer.
        hidden_bias: float32 ``(width,)``, None without a hidden layer.
    """

    classes: tuple[str, ...]
    layer: int
    mean: Tensor
    scale: Tensor
    output: Tensor
    output_bias: Tensor
    hidden: Tensor | None = None
    hidden_bias: Tensor | None = None

    def __post_init__(self) -> None:
        features = self.output.shape[-1] if self.hidden is None else self.hidden.shape[-1]
        shapes = {
            "mean": (features,),
            "scale": (features,),
            "output": (len(self.classes), self.output.shape[-1] if self.hidden is None else len(self.hidden)),
            "output_bias": (len(self.classes),),
        }
        if self.hidden is not None:
            shapes |= {"hidden": (len(self.hidden), features), "hidden_bias": (len(self.hidden),)}
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is None or tuple(tensor.shape) != shape:
                raise ThriftyError(f"a gate's {name} must have the shape {shape}: the gate is broken, tune it again")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        names = ("mean", "scale", "output", "output_bias", "hidden", "hidden_bias")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    def to(self, device: torch.device) -> Self:
        """Return the gate with its parameters on a device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})  # type: ignore[arg-type]  # only tensors change

    def logits(self, features: Tensor) -> Tensor:
        """Return float32 ``(rows, classes)`` for features ``(rows, features)`` of any dtype."""
        return _logits(self.tensors, features)

    def probabilities(self, features: Tensor) -> Tensor:
        """Return the probability of each class, float32 ``(rows, classes)``, for features ``(rows, features)``."""
        return self.logits(features).softmax(-1)


def _logits(tensors: Mapping[str, Tensor], features: Tensor) -> Tensor:
    values = (features.float() - tensors["mean"]) / tensors["scale"]
    if "hidden" in tensors:
        values = torch.relu(values @ tensors["hidden"].T + tensors["hidden_bias"])
    return values @ tensors["output"].T + tensors["output_bias"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a gate is trained.

    Attributes:
        width: units of the hidden layer; 0 for a linear classifier.
        epochs: at the most.
        patience: epochs without a lower validation loss after which the training ends.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: examples in a step.
        balanced: weigh classes in the loss by the inverse of their frequency. The weights are taken out of the
            result again, so that its probabilities are those of the data and thresholds keep their meaning.
        seed: of the initial weights and the order of the examples.
    """

    width: int = 256
    epochs: int = 100
    patience: int = 10
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 64
    balanced: bool = False
    seed: int = 0


def fit_gate(
    features: Tensor,
    labels: Tensor,
    validation_features: Tensor,
    validation_labels: Tensor,
    classes: Sequence[str],
    layer: int,
    training: Training | None = None,
) -> Gate:
    """Train a gate, and keep it as it was when the validation loss was lowest.

    Args:
        features: ``(examples, features)``, any float dtype.
        labels: int64 ``(examples,)``, indices into ``classes``.
        validation_features: as ``features``; of other problems.
        validation_labels: as ``labels``.
        classes: names of the classes.
        layer: of the model whose hidden states the features are.
        training: how; None for the defaults.

    Raises:
        ThriftyError: there is nothing to validate on, or a class has no example.
    """
    training = training or Training()
    counts = torch.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts.tolist(), strict=True):
        if not count:
            raise ThriftyError(f"no training example is labelled {name!r}: tune on more problems, or on another task")
    if not len(validation_labels):
        raise ThriftyError(f"{len(labels)} examples leave none to validate on: tune on more problems")
    weights = len(labels) / (len(classes) * counts.float()) if training.balanced else torch.ones(len(classes))
    # what passes through the decode loop is inference mode's, which takes no gradients: clones do
    data, checked = (x.detach().float().cpu().clone() for x in (features, validation_features))
    scale = data.std(0, correction=0)
    fixed = {"mean": data.mean(0), "scale": torch.where(scale > 1e-6, scale, torch.ones_like(scale))}
    learned = _initial(data.shape[1], training.width, len(classes), training.seed)
    optimiser = torch.optim.AdamW(learned.values(), lr=training.learning_rate, weight_decay=training.weight_decay)
    shuffle = torch.Generator().manual_seed(training.seed)
    best, best_loss, stale = {k: v.detach().clone() for k, v in learned.items()}, math.inf, 0
    for _ in range(training.epochs):
        order = torch.randperm(len(data), generator=shuffle)
        for start in range(0, len(data), training.batch_size):
            batch = order[start : start + training.batch_size]
            loss = cross_entropy(_logits({**fixed, **learned}, data[batch]), labels[batch], weights)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimiser.step()
        with torch.no_grad():
            now = float(cross_entropy(_logits({**fixed, **learned}, checked), validation_labels, weights))
        stale += 1
        if now < best_loss:
            best, best_loss, stale = {k: v.detach().clone() for k, v in learned.items()}, now, 0
        if stale >= training.patience:
            break
    best["output_bias"] -= weights.log()
    return Gate(tuple(classes), layer, **fixed, **best)


def _initial(features: int, width: int, classes: int, seed: int) -> dict[str, Tensor]:
    """Return fresh parameters, uniform within the inverse root of what a unit reads."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, reads: int) -> Tensor:
        bound = 1 / math.sqrt(reads)
        return (torch.rand(*shape, generator=generator) * 2 * bound - bound).requires_grad_()

    made = {}
    if width:
        made = {"hidden": uniform(width, features, reads=features), "hidden_bias": uniform(width, reads=features)}
    reads = width or features
    return {**made, "output": uniform(classes, reads, reads=reads), "output_bias": uniform(classes, reads=reads)}


def evaluate(gate: Gate, features: Tensor, labels: Tensor) -> dict[str, float | int | None]:
    """Tell how good a gate is on held-out examples.

    Args:
        gate: which.
        features: ``(examples, features)``.
        labels: int64 ``(examples,)``.

    Returns:
        ``n``; ``accuracy``; ``majority``, the accuracy of always naming the commonest class; ``auroc``, of the last
        of two classes, or the mean over the classes, each against the rest. None where it is undefined.
    """
    if not len(labels):
        return {"n": 0, "accuracy": None, "majority": None, "auroc": None}
    probabilities = gate.probabilities(features.to(gate.mean.device)).cpu()
    ranked = range(1, 2) if len(gate.classes) == 2 else range(len(gate.classes))
    areas = [a for c in ranked if (a := auroc(probabilities[:, c], labels == c)) is not None]
    return {
        "n": len(labels),
        "accuracy": round(float((probabilities.argmax(-1) == labels).float().mean()), 4),
        "majority": round(float(torch.bincount(labels).max()) / len(labels), 4),
        "auroc": round(sum(areas) / len(areas), 4) if areas else None,
    }


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Return the probability that a positive example scores above a negative one, ties counted half.

    Args:
        scores: ``(examples,)``.
        positive: bool ``(examples,)``.

    Returns:
        The area under the ROC curve, None where one of the classes is empty.
    """
    above, below = scores[positive], scores[~positive].sort().values
    if not len(above) or not len(below):
        return None
    less = torch.searchsorted(below, above, right=False) + torch.searchsorted(below, above, right=True)
    return float(less.double().mean()) / (2 * len(below))


def calibrate_threshold(
    scores: Tensor, positive: Tensor, criterion: Literal["balanced", "f1"] = "balanced"
) -> tuple[float, float] | None:
    """Return the threshold above which positives and negatives part best.

    Scores .1 .4 .6 .9, of which the second and the last two are positive, part best at .25 (F1) or .25 (balanced).

    Args:
        scores: ``(examples,)``.
        positive: bool ``(examples,)``.
        criterion: ``balanced`` for the mean of the two classes' accuracies, ``f1`` for that of the positives, which
            asks for precision where positives are rare.

    Returns:
        The threshold, midway between two neighbouring scores, and the criterion's value there; of equal ones the
        highest threshold, at which a method interferes least. None where one of the classes is empty.
    """
    if not bool(positive.any()) or bool(positive.all()):
        return None
    values, place = torch.unique(scores.double(), return_inverse=True)
    right, wrong = (_at_least(place[of], len(values)) for of in (positive, ~positive))
    bars = torch.cat([values[:1] - 1e-6, (values[1:] + values[:-1]) / 2])
    if criterion == "f1":
        quality = 2 * right / (right + wrong + right[0])
    else:
        quality = (right / right[0] + 1 - wrong / wrong[0]) / 2
    best = int(torch.nonzero(quality == quality.max())[-1])
    return float(bars[best]), float(quality[best])


def _at_least(places: Tensor, count: int) -> Tensor:
    """Return how many of the places are at or behind each of ``count`` places, float64."""
    return torch.bincount(places, minlength=count).double().flip(0).cumsum(0).flip(0)


def rare_classes(counts: Mapping[str, int]) -> list[str]:
    """Return a warning for each class that has less than `RARE` of the data.

    Args:
        counts: examples of each class.
    """
    total = sum(counts.values())
    return [
        f"only {count} of {total} examples are labelled {name!r}: tune on more problems, or do not trust it on them"
        for name, count in counts.items()
        if count < RARE * total
    ]
