"""The path of the hidden states while a row thinks: running means of segments, and what its geometry tells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.probe import entropy
from thrifty.decoding.row import Row
from thrifty.models.torch import TorchModel

EPSILON = 1e-8
"""Norm up to which a vector has no direction."""


def segment_means(states: Tensor, window: int) -> Tensor:
    """Return the means of windows, the last of which may be shorter; 5 tokens in windows of 2 are 2, 2 and 1.

    Args:
        states: ``(tokens, layers, hidden)``.
        window: tokens of a segment.

    Returns:
        float32 ``(segments, layers, hidden)``.
    """
    return torch.stack([part.float().mean(0) for part in torch.split(states, window)])


def layer_signals(means: Tensor, divisor: str = "paper") -> dict[str, Tensor]:
    """Return net, cumulative and aligned change of each layer.

    With u = h(N) - h(1) and v(n) = h(n) - h(n-1): net is \\|u\\| / N, cumulative is the sum of \\|v(n)\\|, aligned is
    the mean cosine of v(n) and u. (0,0), (3,0), (3,4) give 5/3, 7 and .7; a way there and back has aligned 0, for
    u has no direction.

    Args:
        means: of the segments, ``(segments, layers, hidden)``, computed with in float32 at least.
        divisor: ``paper`` divides net by the number of segments, ``release`` by that of the steps between them.

    Returns:
        float ``(layers,)`` each; NaN where there are fewer than two segments.
    """
    means = means if means.dtype == torch.float64 else means.float()
    count = len(means)
    if count < 2:
        undefined = means.new_full((means.shape[1],), math.nan)
        return {"net": undefined, "cumulative": undefined, "aligned": undefined}
    drift, steps = means[-1] - means[0], means.diff(dim=0)
    return {
        "net": drift.norm(dim=-1) / (count if divisor == "paper" else count - 1),
        "cumulative": steps.norm(dim=-1).sum(0),
        "aligned": _cosines(steps, drift[None]).mean(0),
    }


def signals(means: Tensor, divisor: str = "paper") -> dict[str, float]:
    """Return the means over the layers of `layer_signals`."""
    return {name: float(values.mean()) for name, values in layer_signals(means, divisor).items()}


def depth_signals(means: Tensor) -> dict[str, float]:
    """Return the geometry of the path along depth instead of time, averaged over the segments.

    Magnitude is the sum of the steps from layer to layer over the distance from the first to the last; angle is the
    mean angle in radians between one step and the next. (0,0), (3,0), (3,4) as three layers give 7/5 and pi/2.

    Args:
        means: of the segments, ``(segments, layers, hidden)``.

    Returns:
        ``layer_magnitude`` and ``layer_angle``; NaN without a segment or with too few layers.
    """
    steps = means.float().diff(dim=1)
    distance = (means[:, -1] - means[:, 0]).float().norm(dim=-1).clamp(min=EPSILON)
    turns = _cosines(steps[:, 1:], steps[:, :-1]).clamp(-1, 1).arccos()
    return {
        "layer_magnitude": float((steps.norm(dim=-1).sum(-1) / distance).mean()),
        "layer_angle": float(turns.mean()),
    }


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosines of vectors ``(..., hidden)``, 0 where one of them has no direction."""
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    defined = (a.norm(dim=-1) > EPSILON) & (b.norm(dim=-1) > EPSILON)
    return torch.where(defined, (a * b).sum(-1) / norms.clamp(min=EPSILON**2), 0.0)


@dataclass(eq=False)
class Path:
    """The path of one row: `Trajectory` keeps it in ``row.state``.

    Attributes:
        window: tokens of a segment, 0 to end segments where lines end.
        seen: tokens of the response whose states were shown.
        tokens: of them within thinking.
        total: sum of the states of the open segment, float32 ``(layers, hidden)``.
        open: tokens in it.
        closed: means of the segments before it.
        lens: sums over the thinking tokens of the mean over layers of logit margin and entropy.
        at_checkpoint: means of the segments when the row had thought so many tokens as the checkpoint says.
    """

    window: int
    seen: int
    tokens: int = 0
    total: Tensor | None = None
    open: int = 0
    closed: list[Tensor] = field(default_factory=list)
    lens: list[float] = field(default_factory=lambda: [0.0, 0.0])
    at_checkpoint: Tensor | None = None

    def add(self, state: Tensor, line_ended: bool) -> None:
        """Add the state of one token, float32 ``(layers, hidden)``."""
        self.total = state.clone() if self.total is None else self.total.add_(state)
        self.tokens += 1
        self.open += 1
        if self.open == self.window or (line_ended and not self.window):
            self.closed.append((self.total / self.open).cpu())
            self.total, self.open = None, 0

    def means(self, merge: bool = False) -> Tensor:
        """Return the means of all segments, float32 ``(segments, layers, hidden)`` on the CPU; none is ``(0, 1, 1)``.

        Args:
            merge: join a last segment of less than a quarter of the window with the one before.
        """
        means = list(self.closed)
        if self.total is not None:
            last = self.total.cpu()
            if merge and means and self.open < self.window / 4:
                means[-1] = (means[-1] * self.window + last) / (self.window + self.open)
            else:
                means.append(last / self.open)
        return torch.stack(means) if means else torch.zeros(0, 1, 1)


class Trajectory(Controller):
    """Average the states behind all layers over segments of a row's thinking, its closing marker included.

    Only a sum and the finished means are kept of a row, never the states themselves.

    Args:
        model: whose states.
        window: tokens of a segment, 0 to end segments where lines end.
        checkpoint: thinking tokens at which the means are kept as they are then, 0 for none.
        stop: stop a row there, to be gone on from.
        lens: also unembed the states of every layer and sum up how sure they are of the next token. It costs a
            vocabulary projection a layer and token, which the row's account is charged with.
    """

    def __init__(
        self, model: TorchModel, window: int, checkpoint: int = 0, stop: bool = False, lens: bool = False
    ) -> None:
        self.taps = range(1, model.layers + 1)
        self.model, self.window, self.checkpoint, self.stop, self.lens = model, window, checkpoint, stop, lens

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.state[self] = Path(self.window, len(row.ids))

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if self.stop and row.thinking_tokens >= self.checkpoint and row.thinking and not row.forced:
                row.stop("checkpoint")

    def see_hidden(self, rows: Sequence[Row], hidden: Mapping[int, Tensor]) -> None:
        states = torch.stack([hidden[layer] for layer in self.taps], dim=1).float()
        fresh = [i for i, row in enumerate(rows) if len(row.ids) > row.state[self].seen]
        thought = [i for i in fresh if rows[i].newest_phase == "thinking"]
        for i in fresh:
            rows[i].state[self].seen = len(rows[i].ids)
        for i in thought:
            path = rows[i].state[self]
            path.add(states[i], rows[i].line_ended)
            if path.tokens == self.checkpoint:
                path.at_checkpoint = path.means()
        if self.lens and thought:
            self._look(states[thought], [rows[i] for i in thought])

    def _look(self, states: Tensor, rows: Sequence[Row]) -> None:
        network = self.model.network
        normalise = getattr(network.base_model, "norm", torch.nn.Identity())
        states = normalise(states.to(self.model.dtype))
        logits = network.get_output_embeddings()(states)[..., : self.model.vocabulary_size].float()
        top = logits.topk(2, dim=-1).values
        margins = (top[..., 0] - top[..., 1]).mean(1).tolist()
        entropies = entropy(logits).mean(1).tolist()
        cost = 2.0 * logits.shape[1] * self.model.hidden_size * self.model.vocabulary_size
        for row, margin, uncertainty in zip(rows, margins, entropies, strict=True):
            sums = row.state[self].lens
            sums[0] += margin
            sums[1] += uncertainty
            row.usage.flops += cost
