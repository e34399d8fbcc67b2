"""The token router of R2R: a feed-forward network that tells which tokens of a small model lead a response astray."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from thrifty.decoding.gate import auroc
from thrifty.errors import ThriftyError
from thrifty.models.torch import TorchModel

IDENTICAL, NEUTRAL, DIVERGENT = 0, 1, 2
"""What became of the small model's token: the large one's, another one that means the same, one that does not."""
EXPANSION, DROPOUT = 4, 0.1


class _Block(nn.Module):
    """A residual block, normalised first: linear, GELU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, EXPANSION * width), nn.Linear(EXPANSION * width, width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(nn.functional.gelu(self.inner(self.norm(x))))
        added: Tensor = x + self.dropout(self.outer(inner))
        return added


class Router(nn.Module):
    """The probability that a small model's next token is divergent, from its state, the token and its likeliest logits.

    With the state h that predicts the token, the token's input embedding e and the values t of the highest logits,
    largest first: u = W_c [h; e; W_l t], a linear layer, residual blocks, and a head on their normalised output.

    Args:
        hidden_size: d, of the small model; its embedding is not part of the network.
        width: of the blocks.
        blocks: how many.
        top: k, logits that it sees.
        classes: 1 for a sigmoid; 3 for a softmax over `IDENTICAL`, `NEUTRAL`, `DIVERGENT`, whose last entry counts.
        normalise: softmax over the logits, and layer norms on state and embedding.
    """

    def __init__(
        self,
        hidden_size: int,
        width: int = 1024,
        blocks: int = 6,
        top: int = 100,
        classes: int = 1,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = {"hidden_size": hidden_size, "width": width, "blocks": blocks, "top": top, "classes": classes}
        self.normalise = normalise
        self.scores = nn.Linear(top, hidden_size)
        self.combine = nn.Linear(3 * hidden_size, width)
        self.enter = nn.Linear(width, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        if normalise:
            self.norm_hidden, self.norm_token = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, hidden: Tensor, token: Tensor, top: Tensor) -> Tensor:
        """Return logits ``(rows, classes)``.

        Args:
            hidden: states that predict the tokens, float32 ``(rows, d)``.
            token: embeddings of the tokens, float32 ``(rows, d)``.
            top: the highest logits, raw and largest first, float32 ``(rows, k)``.
        """
        if self.normalise:
            hidden, token, top = self.norm_hidden(hidden), self.norm_token(token), top.softmax(-1)
        x = self.enter(self.combine(torch.cat([hidden, token, self.scores(top)], dim=-1)))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def probabilities(self, hidden: Tensor, token: Tensor, top: Tensor) -> Tensor:
        """Return the probability that each token is divergent, float32 ``(rows,)``; arguments as for `forward`."""
        logits = self(hidden, token, top)
        found: Tensor = logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)[:, DIVERGENT]
        return found

    @classmethod
    def restored(cls, sizes: dict[str, int], normalise: bool, parameters: dict[str, Tensor]) -> Self:
        """Return a router as it was saved, ready to use.

        Raises:
            ThriftyError: the parameters are not those of such a network.
        """
        with torch.device("meta"):  # what it would be initialised with is thrown away
            router = cls(**sizes, normalise=normalise)
        try:
            router.load_state_dict(parameters, assign=True)
        except RuntimeError as error:
            raise ThriftyError("the router's parameters do not fit its sizes: tune it again") from error
        return router.eval().requires_grad_(False)


def final_states(model: TorchModel, states: Tensor) -> Tensor:
    """Return what a model's head reads of its last layer's states, float32 ``(..., hidden)``.

    They are normalised where the network calls its last norm ``norm``, as Llama and its kin do.

    Args:
        model: whose.
        states: behind the last layer, as `TorchModel.tap` gives them.
    """
    normalise = getattr(model.network.base_model, "norm", torch.nn.Identity())
    normalised: Tensor = normalise(states)
    return normalised.float()


def top_logits(logits: Tensor, count: int) -> Tensor:
    """Return the highest logits, largest first, float32 ``(..., count)``."""
    return logits.topk(count, dim=-1).values.float()


@dataclass(frozen=True)
class Examples:
    """Tokens that a small model would have written, and what became of them.

    Attributes:
        hidden: states that predict them, as `final_states` gives them, float32 ``(n, d)``.
        tokens: int64 ``(n,)``.
        top: float32 ``(n, k)``.
        labels: `IDENTICAL`, `NEUTRAL` or `DIVERGENT`, int64 ``(n,)``.
    """

    hidden: Tensor
    tokens: Tensor
    top: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, some: slice | Tensor) -> Examples:
        """Return some of the examples, by a slice or indices."""
        return Examples(self.hidden[some], self.tokens[some], self.top[some], self.labels[some])

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """Return the examples of all parts, at least one, in order."""
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in ("hidden", "tokens", "top", "labels")))


@dataclass(frozen=True, kw_only=True)
class RouterTraining:
    """How a router is trained; the defaults are the paper's.

    Attributes:
        epochs: at the most.
        patience: epochs without a lower validation loss after which the training ends.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: tokens in a step.
        recall_factor: by which the weight of divergent tokens exceeds what would balance them.
        seed: of the initial weights, the dropout and the order of the tokens.
    """

    epochs: int = 50
    patience: int = 10
    learning_rate: float = 5e-5
    weight_decay: float = 5e-4
    batch_size: int = 1024
    recall_factor: float = 1.0
    seed: int = 0


def positive_weight(labels: Tensor, recall_factor: float = 1.0) -> float:
    """Return the weight of divergent tokens in the loss: negatives by positives, and 1 where one of them is missing.

    Args:
        labels: int64 ``(n,)``.
        recall_factor: multiplies it.
    """
    positives = int((labels == DIVERGENT).sum())
    negatives = len(labels) - positives
    return negatives / positives * recall_factor if positives and negatives else 1.0


def fit_router(
    make: Callable[[], Router], model: TorchModel, train: Examples, validation: Examples, training: RouterTraining
) -> Router:
    """Train a router, and keep it as it was when the validation loss was lowest.

    Args:
        make: returns a fresh one.
        model: the small model, whose embedding tells the tokens; it stays as it is, and the training runs beside it.
        train: what to learn from.
        validation: tokens of other problems.
        training: how.

    Raises:
        ThriftyError: one of the two holds no token.
    """
    if not len(train) or not len(validation):
        raise ThriftyError("there are too few finished responses to train and validate a router on: raise --limit")
    # a model's weights are read only, and what the decode loop's inference mode made takes no gradients: clones do
    train, validation = (e.take(torch.arange(len(e))) for e in (train, validation))
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        router = make().to(model.device)
        return _fitted(router, model, train, validation, training)


def _fitted(
    router: Router, model: TorchModel, train: Examples, validation: Examples, training: RouterTraining
) -> Router:
    weight = torch.tensor(positive_weight(train.labels, training.recall_factor), device=model.device)
    optimiser = torch.optim.AdamW(router.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    best, best_loss, stale = {k: v.detach().clone() for k, v in router.state_dict().items()}, math.inf, 0
    for _ in range(training.epochs):
        router.train()
        for some in torch.split(torch.randperm(len(train)), training.batch_size):
            loss = _losses(router, model, train, some, weight).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimiser.step()
        router.eval()
        with torch.no_grad():
            places = torch.split(torch.arange(len(validation)), training.batch_size)
            now = float(sum(_losses(router, model, validation, some, weight).sum() for some in places))
        stale += 1
        if now < best_loss:
            best, best_loss, stale = {k: v.detach().clone() for k, v in router.state_dict().items()}, now, 0
        if stale >= training.patience:
            break
    router.load_state_dict(best)
    return router.eval().requires_grad_(False)


def _inputs(model: TorchModel, examples: Examples, some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden, tokens, top = (t[some].to(model.device) for t in (examples.hidden, examples.tokens, examples.top))
    return hidden, model.embed(tokens).float(), top


def _losses(router: Router, model: TorchModel, examples: Examples, some: Tensor, weight: Tensor) -> Tensor:
    """Return the loss of some tokens, ``(tokens,)``."""
    logits, labels = router(*_inputs(model, examples, some)), examples.labels[some].to(model.device)
    if logits.shape[1] == 1:
        wanted = (labels == DIVERGENT).float()
        return binary_cross_entropy_with_logits(logits[:, 0], wanted, pos_weight=weight, reduction="none")
    weights = torch.stack([torch.ones_like(weight), torch.ones_like(weight), weight])
    return cross_entropy(logits, labels, weights, reduction="none")


@torch.no_grad()
def divergence(router: Router, model: TorchModel, examples: Examples) -> Tensor:
    """Return the probability that each token of some examples is divergent, float32 ``(n,)`` on the CPU."""
    places = torch.split(torch.arange(len(examples)), 4096)
    found = [router.probabilities(*_inputs(model, examples, some)).cpu() for some in places]
    return torch.cat(found) if found else torch.zeros(0)


def choose_threshold(
    probabilities: Tensor, positive: Tensor, min_recall: float = 0.95, max_false_share: float = 1.0
) -> float:
    """Return the threshold that routes enough of the divergent tokens and fewest of the others.

    Of 100 values from 0.01 to 0.99 those count that keep the recall and the share of falsely routed tokens among all
    tokens; of equally good ones the lowest is taken, and 0.5 where none counts. Probabilities .9 .8 .3 .1, of which the
    first two are divergent: the first value above .3.

    Args:
        probabilities: ``(n,)``; a token is routed at the threshold or above.
        positive: bool ``(n,)``, whether it is divergent.
        min_recall: share of the divergent tokens to route.
        max_false_share: falsely routed tokens, of all; the strict variant asks for 0.1.
    """
    best, fewest = 0.5, math.inf
    for threshold in torch.linspace(0.01, 0.99, 100, dtype=torch.float64).tolist():
        found = rates(probabilities, positive, threshold)
        recall, false_share = found["recall"], found["false_share"]
        if recall >= min_recall and false_share <= max_false_share and false_share < fewest:
            best, fewest = threshold, false_share
    return best


def rates(probabilities: Tensor, positive: Tensor, threshold: float) -> dict[str, float]:
    """Return what a threshold routes: ``routed`` and ``false_share`` of all tokens, and ``recall`` (NaN without any).

    Args:
        probabilities: ``(n,)``, at least one.
        positive: bool ``(n,)``.
        threshold: from which tokens are routed.
    """
    routed = probabilities.double() >= threshold
    hits, positives = int((routed & positive).sum()), int(positive.sum())
    return {
        "routed": float(routed.double().mean()),
        "recall": hits / positives if positives else math.nan,
        "false_share": float((routed & ~positive).double().mean()),
    }


def evaluate_router(probabilities: Tensor, positive: Tensor, threshold: float) -> dict[str, float | int | None]:
    """Tell how good a router is on held-out tokens: their number, `rates` at a threshold, and the AUROC.

    Args:
        probabilities: ``(n,)``.
        positive: bool ``(n,)``.
        threshold: from which tokens are routed.
    """
    if not len(positive):
        return {"n": 0, "auroc": None}
    area = auroc(probabilities, positive)
    found = {k: None if math.isnan(v) else round(v, 4) for k, v in rates(probabilities, positive, threshold).items()}
    return {"n": len(positive), **found, "auroc": None if area is None else round(area, 4)}
