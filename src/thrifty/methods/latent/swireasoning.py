"""SwiReasoning: think in mixtures of all tokens while uncertain, in tokens once the entropy has fallen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.concept import mix_all
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.probe import entropy
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods.base import Method
from thrifty.models.base import Model
from thrifty.models.torch import TorchModel

MODES = {"switch": math.nan, "latent": -math.inf, "explicit": math.inf}
"""The modes, and the entropy with which their first block is compared; NaN for that of the first step."""
LEAD_IN = "The final answer is"
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-*/^=<>()[]{}_|"
COMMANDS = r"""
    \leq \geq \neq \approx \sim \equiv \to \implies \iff \left \right \frac \dfrac \sqrt \binom \boxed \in \notin
    \subset \subseteq \cup \cap \emptyset \forall \exists \pi \theta \alpha \beta \gamma \delta \epsilon \lambda \mu
    \nu \sin \cos \tan \arcsin \arccos \arctan \log \ln \exp \cdot \times \div \pm \dots \ldots \cdots \mathbb
    \mathbf \mathrm \text \infty \circ \prime \angle \triangle \perp \parallel \overline \underline \lfloor \rfloor
    \lceil \rceil \mid \vert \wedge \vee \neg \therefore \sum \prod \int \lim \min \max \gcd \deg
    \begin{pmatrix} \end{pmatrix}
"""
"""Whose tokens, and pieces, are read as they are also in latent blocks."""

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Nats = npt.NDArray[np.float64]


class Switching(NamedTuple):
    """Where rows stand: arrays ``(rows,)``, or the values of one row.

    Attributes:
        explicit: whether the block is an explicit one.
        reference: entropy in nats at the block's start; NaN before the first step.
        stay: steps since it began.
        locked: whether the row stays explicit for good, whatever its block.
        switches: from latent to explicit so far.
        budget: tokens until the response ends, -1 for no limit.
    """

    explicit: Flags
    reference: Nats
    stay: Counts
    locked: Flags
    switches: Counts
    budget: Counts


class Decision(NamedTuple):
    """What one step decides, flags ``(rows,)``.

    Attributes:
        to_latent: a latent block begins.
        to_explicit: an explicit block begins.
        converge: the thinking is to be closed.
        terminate: the answer is to be given, in a few tokens.
        end: the response ends with this step's token.
    """

    to_latent: Flags
    to_explicit: Flags
    converge: Flags
    terminate: Flags
    end: Flags


@dataclass(frozen=True)
class SwiController:
    """Decides for many rows at once which of them think in tokens, and which have switched often enough.

    Entropies of 2.0, 1.5, 2.5, 2.6 and 2.0 nats at a window of 2 give the blocks latent, explicit, explicit, latent
    and explicit; references of 2.0, 1.5, 1.5, 2.6 and 2.0; and 0, 1, 1, 1 and 2 switches. With max_switches 1, the
    switches 1 and 2 converge and the third terminates.

    Attributes:
        window: W, steps that an explicit block lasts at least.
        max_switches: N; switches N to 2N converge, the next one terminates. -1 for no cap.
        answer_tokens: tokens that are left from the one that terminates, itself included.
    """

    window: int = 512
    max_switches: int = -1
    answer_tokens: int = 32

    def step(self, state: Switching, nats: Nats, closed: Flags) -> tuple[Switching, Decision]:
        """Return where rows stand after a step, and what it decides.

        Args:
            state: before it.
            nats: entropies of the model's raw next-token distributions ``(rows,)``.
            closed: rows that are to stay explicit from now on ``(rows,)``.
        """
        first = np.isnan(state.reference)
        reference, stay = np.where(first, nats, state.reference), np.where(first, 0, state.stay + 1)
        locked = state.locked | closed
        to_explicit = ~state.explicit & (nats < reference)
        to_latent = state.explicit & (nats > reference) & (stay >= self.window) & ~locked
        switched = to_explicit | to_latent
        switches = state.switches + to_explicit
        capped = to_explicit & ~locked & (state.budget < 0) & (self.max_switches > 0)
        converge = capped & (switches >= self.max_switches) & (switches <= 2 * self.max_switches)
        terminate = capped & (switches > 2 * self.max_switches)
        budget = np.where(terminate, self.answer_tokens, state.budget)
        budget = np.where(budget >= 0, budget - 1, budget)
        after = Switching(
            state.explicit ^ switched,
            np.where(switched, nats, reference),
            np.where(switched, 0, stay),
            locked,
            switches,
            budget,
        )
        return after, Decision(to_latent, to_explicit, converge, terminate, budget == 0)


def share(start: float, step: int, steps: int) -> float:
    """Return the share of the mixture at a switch: ``start`` at step 0, all of it at the last step.

    >>> round(share(0.6, 50, 100), 6), round(share(0.7, 50, 100), 6)
    (0.8, 0.85)
    """
    return start + (1 - start) * step / steps


class _Switch(Controller):
    def __init__(self, method: SwiReasoning, model: TorchModel) -> None:
        self.method, self.model = method, model
        self.controller = SwiController(method.window, method.max_switches, method.answer_tokens)
        self.opener, self.closer = method.markers(model)
        newline = model.encode("\n")
        self.newline = newline[0] if len(newline) == 1 else None
        symbols = [*CHARACTERS, *COMMANDS.split()] if method.math_tokens else []
        self.hard = frozenset(token for symbol in symbols for token in model.encode(symbol))
        # from choosing a token to having written it
        self._logits: Tensor | None = None
        self._ended: list[bool] = []

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        mode = self.method.mode
        for row in rows:
            row.state[self] = (mode == "explicit", MODES[mode], 0, False, 0, -1)
            row.events[SwiReasoning.slug] = []

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        self._logits = logits
        return logits

    def next_input(self, rows: Sequence[Row], tokens: list[int]) -> None:
        self._ended = [token == self.closer for token in tokens]

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        logits = self._logits
        assert logits is not None
        nats = entropy(logits).double().cpu().numpy()
        closed = np.array([self._is_closed(row, ended) for row, ended in zip(rows, self._ended, strict=True)])
        before = Switching(*map(np.array, zip(*(row.state[self] for row in rows), strict=True)))
        after, decision = self.controller.step(before, nats, closed)
        fed: list[int] = []
        shares: list[float] = []
        others: list[int] = []
        for i, row in enumerate(rows):
            row.state[self] = tuple(field[i] for field in after)
            if decision.to_explicit[i] or decision.to_latent[i]:
                mode = "explicit" if decision.to_explicit[i] else "latent"
                row.events[SwiReasoning.slug].append([len(row.ids), mode, round(float(nats[i]), 6)])
            mixed = self._mixture(row, i, after, decision)
            if mixed is not None:
                fed.append(i)
                shares.append(mixed[0])
                others.append(mixed[1])
            if row.ids[-1] not in row.model.eos_ids:
                self._inject(row, decision.converge[i], decision.terminate[i])
                if decision.end[i] and not row.stopped:
                    row.stop("max_tokens")
        if fed:
            self._feed([rows[i] for i in fed], torch.softmax(logits[fed], dim=-1), shares, others, batch)

    def _is_closed(self, row: Row, ended: bool) -> bool:
        """Tell whether the model ended its thinking, or anybody else but this method did."""
        mine = SwiReasoning.slug in (row.closing, row.closed_by)
        if ended and (row.newest_kind != "injected" or mine):
            return True
        if row.closing not in (None, SwiReasoning.slug):
            return True
        return row.phases.closed > 0 and (not mine or self.method.hard_close)

    def _mixture(self, row: Row, i: int, after: Switching, decision: Decision) -> tuple[float, int] | None:
        """Return the share of the soft embedding in what row i reads, and the token that has the rest, if it is fed."""
        token, method = row.ids[-1], self.method
        if row.newest_kind not in ("thinking", "answer") or token in row.model.eos_ids:
            return None
        step, steps = len(row.ids) - 1, row.settings.max_tokens
        if decision.to_explicit[i]:
            return share(method.beta, step, steps), self.closer
        if after.explicit[i] or after.locked[i] or token in self.hard:
            return None
        if decision.to_latent[i]:
            return share(method.alpha, step, steps), self.opener
        if step == 0 and self.newline is not None:
            return 1 - method.newline, self.newline
        return 1.0, token

    def _feed(
        self, rows: Sequence[Row], probabilities: Tensor, shares: Sequence[float], others: Sequence[int], batch: Batch
    ) -> None:
        soft = mix_all(self.model, probabilities)
        rest = self.model.embed(torch.tensor(others, device=soft.device))
        weights = soft.new_tensor(shares)[:, None]
        for row, vector in zip(rows, weights * soft + (1 - weights) * rest, strict=True):
            batch.feed(row, vector)
            row.usage.flops += 2.0 * probabilities.shape[-1] * self.model.hidden_size

    def _inject(self, row: Row, converge: bool, terminate: bool) -> None:
        if (converge or terminate) and row.thinking:
            row.close_thinking(SwiReasoning.slug)
        if terminate:
            behind = row.forced or row.line_ended
            row.force(LEAD_IN if behind else f"\n\n{LEAD_IN}")


@dataclass(frozen=True, kw_only=True)
class SwiReasoning(Method):
    """Switch between thinking in mixtures of all tokens and thinking in tokens, as the entropy falls and rises.

    In a latent block the model reads the mean of all input embeddings, weighted by its raw next-token distribution,
    while the chosen token stands for it in the text. Once the entropy falls below that of the block's start, an
    explicit block begins; once it rises above that of the explicit block's start, and not before ``window`` steps, a
    latent one. Tokens are chosen by the settings of the run: the paper's are a temperature of 0.6, top-p 0.95 and
    top-k 20. With ``max_switches`` N, the N-th to 2N-th switch to explicit closes the thinking, and a later one asks
    for the answer at once and leaves it ``answer_tokens`` tokens.

    Source: SwiReasoning: Switch-Thinking in Latent and Explicit for Pareto-Superior Reasoning LLMs, arXiv 2510.05069;
    card ``swireasoning``. Follows the release, also in that a thinking which the cap closed may turn latent again in
    the answer, up to the last switch. It parts from it where that could harm an answer: once the model itself or
    another method has ended the thinking, nothing is injected, a closed thinking is not closed again, and a
    termination is not repeated. Injected text is read as it is, and closes as all methods here do. Reconstruction:
    which LaTeX commands are math tokens.

    Attributes:
        window: W, steps that an explicit block lasts at least.
        max_switches: N, the cap on switches from latent to explicit; -1 for none.
        alpha: alpha0, share of the mixture in the first step of a later latent block, where the rest is the opening
            think marker; it grows to 1 over the tokens of the run. The authors tune it from 0.1 to 1.
        beta: beta0, share of the mixture in the first step of an explicit block, where the rest is the closing one.
        newline: share of a newline in the very first step.
        answer_tokens: tokens that a termination leaves, injected ones included.
        math_tokens: always read digits, letters, operators, brackets and pieces of LaTeX commands as they are.
        hard_close: stay explicit when the cap has closed the thinking.
        mode: ``switch``; ``latent`` never thinks in tokens; ``explicit`` always does: the plain model.
    """

    slug: ClassVar[str] = "swireasoning"
    needs: ClassVar[Need] = Need.LOGITS | Need.EMBEDDINGS
    window: int = 512
    max_switches: int = -1
    alpha: float = 1.0
    beta: float = 0.7
    newline: float = 0.1
    answer_tokens: int = 32
    math_tokens: bool = True
    hard_close: bool = False
    mode: str = "switch"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownName("mode of swireasoning", self.mode, MODES)
        if not all(0 <= value <= 1 for value in (self.alpha, self.beta, self.newline)):
            raise ThriftyError("swireasoning: alpha, beta and newline must be between 0 and 1")
        if self.max_switches < 1 and self.max_switches != -1:
            raise ThriftyError("swireasoning: max_switches must be at least 1, or -1 for no cap")
        if self.window < 1 or self.answer_tokens < 1:
            raise ThriftyError("swireasoning: window and answer_tokens must be at least 1")

    def markers(self, model: TorchModel) -> tuple[int, int]:
        """Return the tokens that open and close the thinking.

        Raises:
            ThriftyError: the model spells one of them in several tokens, so that it has no embedding to mix.
        """
        found = [model.encode(marker) for marker in (model.think.open, model.think.close)]
        for marker, ids in zip((model.think.open, model.think.close), found, strict=True):
            if len(ids) != 1:
                raise ThriftyError(
                    f"swireasoning mixes the embeddings of the think markers, but {model.name!r} spells {marker!r} in "
                    f"{len(ids)} tokens. If others are single tokens of its vocabulary: --think '<open>,</close>'."
                )
        return found[0][0], found[1][0]

    def check(self, model: Model) -> None:
        super().check(model)
        assert isinstance(model, TorchModel)
        self.markers(model)

    def controllers(self, model: TorchModel) -> list[Controller]:
        return [_Switch(self, model)]
