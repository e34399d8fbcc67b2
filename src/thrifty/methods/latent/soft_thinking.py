"""Soft Thinking: the model reads mixtures of its likeliest next tokens while it thinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.concept import Concept, mix
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.probe import entropy
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import Keys, uniforms
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods.base import Method
from thrifty.models.torch import TorchModel

NOISES = ("none", "dirichlet", "gumbel")
STREAM = 11
"""Of the random numbers that noise is made of."""
LEAD = 1e6
"""What puts a token before all others, at any temperature."""


def low_steps(low: npt.NDArray[np.int64], nats: npt.NDArray[np.floating], tau: float) -> npt.NDArray[np.int64]:
    """Return how many steps in a row the entropy has been below tau, this one included.

    At tau .5, entropies of .4, .6, .4 and .3 nats make 1, 0, 1 and 2 of an initial 0; a k_stop of 2 stops there.

    Args:
        low: the steps before this one ``(rows,)``.
        nats: entropies of this step ``(rows,)``.
        tau: in nats.
    """
    return np.where(nats < tau, low + 1, 0)


def dirichlet(concept: Concept, alpha: float, keys: Keys, counters: Keys) -> Concept:
    """Replace the weights of concepts by a draw from the Dirichlet distribution with concentrations alpha * weights.

    Args:
        concept: of the rows.
        alpha: the larger, the closer are the draws to the weights.
        keys: of the rows' random streams, uint64 ``(rows,)``.
        counters: positions in them, uint64 ``(rows,)``.
    """
    shapes = alpha * concept.weights.double().cpu().numpy()
    seeds = (uniforms(keys, counters, STREAM) * 2.0**53).astype(np.uint64)
    drawn = np.stack([np.random.default_rng(seed).standard_gamma(s) for seed, s in zip(seeds, shapes, strict=True)])
    # with small concentrations all of a row's draws may be too small for a float
    drawn = np.where(drawn.sum(-1, keepdims=True) > 0, drawn, shapes)
    drawn /= drawn.sum(-1, keepdims=True)
    return concept.reweighted(torch.from_numpy(drawn).to(concept.weights))


def gumbel_softmax(concept: Concept, temperature: float, keys: Keys, counters: Keys) -> Concept:
    """Replace the weights w of concepts by softmax((ln w + g) / temperature), g from the standard Gumbel distribution.

    Args:
        concept: of the rows.
        temperature: above 0; towards 0 one token gets all the weight, each as often as its weight says.
        keys: of the rows' random streams, uint64 ``(rows,)``.
        counters: positions in them, uint64 ``(rows,)``.
    """
    rows, n = concept.weights.shape
    places = np.repeat(counters, n) * np.uint64(n) + np.tile(np.arange(n, dtype=np.uint64), rows)
    draws = np.maximum(uniforms(np.repeat(keys, n), places, STREAM), 2.0**-54)
    noise = torch.from_numpy(-np.log(-np.log(draws))).view(rows, n).to(concept.weights)
    return concept.reweighted(torch.softmax((concept.weights.log() + noise) / temperature, -1))


def _is_soft(row: Row) -> bool:
    """Tell whether a row's next token stands for a concept: in its first think block, by nobody's force."""
    return row.thinking and not row.phases.closed and not row.forced


class _ThinkSoftly(Controller):
    def __init__(self, method: SoftThinking) -> None:
        self.method = method
        # from choosing a token to having written it
        self._soft: list[Row] = []
        self._concept: Concept | None = None
        self._endless: list[Row] = []

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.state[self] = {"thinking": 0, "answer": 0}  # steps of low entropy, which the end of the thinking breaks

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        self._soft, self._endless = [], []
        chosen = [i for i, row in enumerate(rows) if not row.forced]
        if self.method.tau and chosen:
            self._stop_cold([rows[i] for i in chosen], logits[chosen])
        soft = [i for i in chosen if _is_soft(rows[i])]
        if not soft:
            return logits
        self._soft = [rows[i] for i in soft]
        concept = self._concept = self._conceive(self._soft, logits[soft])
        # also where tokens are sampled; what stands behind the leader keeps its order for controllers that mask it
        leader = concept.ids[:, :1]
        led = logits[soft].scatter(-1, leader, logits[soft].amax(-1, keepdim=True) + LEAD)
        return logits.index_copy(0, torch.tensor(soft, device=logits.device), led)

    def _stop_cold(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Close the thinking of rows whose entropy has been low for long, and note where an answer is to end."""
        temperatures = [self.method.temperature if _is_soft(row) else row.settings.temperature for row in rows]
        scaled = logits / logits.new_tensor([t or 1.0 for t in temperatures])[:, None]
        before = np.array([row.state[self][row.phase] for row in rows])
        counts = low_steps(before, entropy(scaled).cpu().numpy(), self.method.tau).tolist()
        for row, low in zip(rows, counts, strict=True):
            row.state[self][row.phase] = low
            if low < self.method.k_stop:
                continue
            if _is_soft(row):
                row.close_thinking(SoftThinking.slug)
            else:
                self._endless.append(row)

    def _conceive(self, rows: Sequence[Row], logits: Tensor) -> Concept:
        method = self.method
        keys = np.array([row.key for row in rows], dtype=np.uint64)
        counters = np.array([len(row.ids) for row in rows], dtype=np.uint64)
        probabilities = torch.softmax(logits / (method.temperature or 1.0), dim=-1)
        concept = Concept.of(probabilities, method.top_k, method.top_p, method.min_p)
        if method.noise == "dirichlet":
            concept = dirichlet(concept, method.alpha, keys, counters)
        concept = concept.top(method.n if method.temperature else 1)
        if method.noise == "gumbel":
            concept = gumbel_softmax(concept, method.tau_g, keys, counters)
        return concept

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in self._endless:
            if row.ids[-1] not in row.model.eos_ids:
                row.stop("loop")
        if not self._soft or self._concept is None:
            return
        leaders, mixed = self._concept.ids[:, 0].tolist(), (self._concept.weights[:, 1:] > 0).any(-1).tolist()
        for row, leader, several, vector in zip(
            self._soft, leaders, mixed, mix(batch.model, self._concept), strict=True
        ):
            # a concept stands for the token that leads it: others may have put another one in its place
            led = row.ids[-1] == leader and row.newest_kind == "thinking"
            # what ends the thinking or the response is read as itself
            if several and led and row.phase == "thinking" and leader not in row.model.eos_ids:
                batch.feed(row, vector)


@dataclass(frozen=True, kw_only=True)
class SoftThinking(Method):
    """Let the model read, while it thinks, the mean of its likeliest next tokens' embeddings instead of one token.

    The weights are the probabilities at ``temperature`` behind the filters, of the ``n`` likeliest tokens. The
    likeliest one is written, also where the run samples, and stands for the mixture in the text; a mixture of one
    token is that token. Where the entropy of the unfiltered distribution stays below ``tau`` for ``k_stop`` steps,
    the thinking is closed (Cold Stop), and an answer is ended as a loop. The answer is decoded by the settings of
    the run: the paper's are a temperature of 0.6, top-p 0.95 and top-k 30. What the paper calls a greedy request is
    ``temperature=0``, which thinks as the greedy model does. Methods that change logits come before it, as in
    ``cgrs+soft-thinking``.

    Source: Soft Thinking: Unlocking the Reasoning Potential of LLMs in Continuous Concept Space, arXiv 2505.15778;
    card ``soft-thinking``. Follows the release: order of the filters, entropy, Cold Stop also behind the thinking.
    Noise follows LLMs are Single-threaded Reasoners, arXiv 2508.03440. Reconstruction: what of a response is forced
    by others is read as it is and leaves Cold Stop waiting, and only the first think block is soft. The authors find
    no gain with models of up to 14B parameters.

    Attributes:
        n: tokens in a mixture at most; 1 thinks greedily, 0 leaves the model as it is.
        temperature: of the distribution that is mixed; 0 for its arg max alone.
        top_k: mix among the k likeliest tokens, 0 for all.
        top_p: mix among the likeliest tokens that hold this much of what top_k leaves.
        min_p: drop tokens less likely than this fraction of the likeliest.
        tau: entropy in nats that counts as low; 0 for no Cold Stop.
        k_stop: steps of low entropy in a row that stop.
        noise: ``none``; ``dirichlet`` draws the weights of all filtered tokens around their probabilities; ``gumbel``
            draws those of the mixture (the release then mixes 5 tokens).
        alpha: concentration of ``dirichlet``.
        tau_g: temperature of ``gumbel``.
    """

    slug: ClassVar[str] = "soft-thinking"
    needs: ClassVar[Need] = Need.LOGITS | Need.EMBEDDINGS
    n: int = 10
    temperature: float = 0.6
    top_k: int = 30
    top_p: float = 0.95
    min_p: float = 0.001
    tau: float = 0.01
    k_stop: int = 256
    noise: str = "none"
    alpha: float = 1.0
    tau_g: float = 0.5

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise UnknownName("noise of soft-thinking", self.noise, NOISES)
        checks = {
            "n and top_k must be at least 0": self.n >= 0 and self.top_k >= 0,
            "temperature must be between 0 and 100": 0 <= self.temperature <= 100,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "min_p must be between 0 and 1": 0 <= self.min_p <= 1,
            "tau must be at least 0, k_stop at least 1": self.tau >= 0 and self.k_stop >= 1,
            "alpha and tau_g must be above 0": self.alpha > 0 and self.tau_g > 0,
            "noise needs a temperature above 0": self.temperature > 0 or self.noise == "none",
        }
        for message, good in checks.items():
            if not good:
                raise ThriftyError(f"soft-thinking: {message}")

    def controllers(self, model: TorchModel) -> list[Controller]:
        return [_ThinkSoftly(self)] if self.n else []
