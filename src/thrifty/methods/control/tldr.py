"""TS: scale the logit of the token that ends the thinking, so that the model stops earlier or later by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import uniforms
from thrifty.errors import ThriftyError
from thrifty.methods.base import Method
from thrifty.models.torch import TorchModel

MODES = ("shifted", "ratio", "bias")
PLACES = ("auto", "anywhere", "lines", "paragraphs")
STREAM = 4
"""Early stops of greedy rows draw from a stream of their own."""
DRAWN = 1e4
"""Added to the logit of a stop token that was drawn: more than lies between any two logits."""


def scale_stop(logits: Tensor, stop: Tensor, mode: str, temperature: float = 1.0, bias: float = 0.0) -> Tensor:
    """Return logits in which only the stop token differs.

    - ``shifted``: ``m + (z_e - m) * T`` with m the largest logit; T < 1 never lowers the stop probability.
    - ``ratio``: ``z_e / T``, the literal form; where z_e is negative, T < 1 lowers the stop probability.
    - ``bias``: ``z_e + b``; b = ln k multiplies the odds of stopping by k.

    Logits 2 (the stop token), 3 and 1 give it a probability of 0.24473; of 0.34821 shifted at T = 0.5, 0.70538
    by ratio at T = 0.5, 0.56448 with a bias of ln 4.

    Args:
        logits: ``(rows, vocab)``; not changed in place.
        stop: ids of the stop token, int64 ``(ids,)``: one, or the spellings of it.
        mode: one of `MODES`.
        temperature: T.
        bias: b, in nats.
    """
    z = logits[:, stop]
    if mode == "shifted":
        top = logits.amax(-1, keepdim=True)
        scaled = top + (z - top) * temperature
    else:
        scaled = z / temperature if mode == "ratio" else z + bias
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    return logits.index_put((rows, stop), scaled)


class _ScaleStop(Controller):
    def __init__(self, method: TS, model: TorchModel) -> None:
        self.method = method
        closer = model.think.force_close
        behind_line = model.encode("\n" + closer)[-len(model.encode(closer)) :]
        stop = {model.encode(closer)[0], behind_line[0]}
        self.stop = torch.tensor(sorted(stop), dtype=torch.int64, device=model.device)
        self.place = method.place
        if self.place == "auto":
            # a closer that is no token of its own begins as other closing tags do, but seldom at the start of a line
            own = all(token in model.tokenizer.added_tokens_decoder for token in stop)
            self.place = "anywhere" if own else "lines"

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.events["tldr"] = {"empty_thought": False}

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        due = [i for i, row in enumerate(rows) if self._due(row)]
        if not due:
            return logits
        method, everyone = self.method, len(due) == len(rows)
        some = logits if everyone else logits[due]
        steered = rows if everyone else [rows[i] for i in due]
        greedy = [row.settings.temperature == 0 for row in steered]
        if method.mode == "shifted" and any(greedy):
            drawn = self._drawn(steered, some) & torch.tensor(greedy, device=some.device)
            if all(greedy) and not drawn.any():
                return logits  # nothing that is shifted gets above the likeliest token
            scaled = scale_stop(some, self.stop, method.mode, method.temperature)
            scaled[:, self.stop] += DRAWN * drawn[:, None]
        else:
            scaled = scale_stop(some, self.stop, method.mode, method.temperature, method.bias)
        return scaled if everyone else logits.index_copy(0, torch.tensor(due, device=logits.device), scaled)

    def _drawn(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        """Tell which rows would stop now if the stop alone were drawn, bool ``(rows,)``."""
        keys = np.array([row.key for row in rows], dtype=np.uint64)
        counters = np.array([len(row.ids) for row in rows], dtype=np.uint64)
        draws = torch.from_numpy(uniforms(keys, counters, STREAM)).to(logits.device)
        below = (logits[:, self.stop] - logits.amax(-1, keepdim=True)) * self.method.temperature
        # nearly always a bound on the probability, which needs no sum over the vocabulary, says no
        likely = draws < below.exp().sum(-1)
        if not likely.any():
            return likely
        scaled = scale_stop(logits, self.stop, "shifted", self.method.temperature)
        stopping = draws < torch.softmax(scaled, -1)[:, self.stop].sum(-1)
        return likely & (stopping | (below == 0).any(-1))

    def _due(self, row: Row) -> bool:
        if not row.thinking or row.forced or row.thinking_tokens < self.method.min_think_tokens:
            return False
        if self.place == "paragraphs":
            return row.paragraph_ended
        return self.place == "anywhere" or row.line_ended or not row.ids

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if row.phases.closed == 1 and self not in row.state:
                row.state[self] = True
                think = row.model.think
                thought = row.text().partition(think.close)[0].removeprefix(think.open)
                row.events["tldr"]["empty_thought"] = not thought.strip()


@dataclass(frozen=True, kw_only=True)
class TS(Method):
    """Make the end of the thinking likelier (or less likely) at every step, and leave its content alone.

    Smaller temperatures stop earlier: sweep them for the curve of accuracy against length. Each trace says in
    ``events["tldr"]`` whether its thought was empty.

    Source: Making Small Language Models Efficient Reasoners: Intervention, Supervision, Reinforcement,
    arXiv 2505.07961; card ``tldr``. This is its training-free part, temperature scaling (TS), also known as
    ``tldr-ts``. Follows the paper in what is scaled. Reconstruction: the formula, sign-safe unless ``mode`` asks
    for the literal one, and the temperatures. The paper samples; the shifted form never changes which token is the
    likeliest, so where decoding is greedy the stop alone is drawn, with its scaled probability, and all else stays
    greedy. A closer of several tokens is scaled by its first one, at the beginning of lines only.
    Ours: ``place``, for models whose stop is as likely inside a working as behind it.

    Attributes:
        temperature: T of the modes ``shifted`` and ``ratio``; 1 changes nothing, above 1 the model thinks longer.
        mode: ``shifted``, ``ratio`` (the literal form) or ``bias``; see `scale_stop`.
        bias: b of the mode ``bias``, in nats; 0 changes nothing.
        min_think_tokens: thinking tokens before which nothing is scaled, against empty thoughts.
        place: where the stop is scaled: ``anywhere``, at the beginning of ``lines`` or of all
            ``paragraphs`` but the first; ``auto`` is anywhere for a closer that is one token, else lines.
    """

    slug: ClassVar[str] = "tldr"
    needs: ClassVar[Need] = Need.LOGITS
    temperature: float = 0.5
    mode: str = "shifted"
    bias: float = 0.0
    min_think_tokens: int = 0
    place: str = "auto"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ThriftyError(f"tldr: mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if self.place not in PLACES:
            raise ThriftyError(f"tldr: place must be one of {', '.join(PLACES)}, not {self.place!r}")
        if not (0 < self.temperature < math.inf or (self.temperature == 0 and self.mode == "shifted")):
            raise ThriftyError("tldr: temperature must be above 0; in mode shifted it may be 0")
        if not math.isfinite(self.bias) or (self.bias and self.mode != "bias"):
            raise ThriftyError("tldr: bias must be a finite number, and belongs to mode=bias")
        if self.min_think_tokens < 0:
            raise ThriftyError("tldr: min_think_tokens must be at least 0")

    def controllers(self, model: TorchModel) -> list[Controller]:
        neutral = self.bias == 0 if self.mode == "bias" else self.temperature == 1
        return [] if neutral else [_ScaleStop(self, model)]
