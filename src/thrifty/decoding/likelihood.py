"""How likely the model found what it wrote."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.row import Row
from thrifty.traces.trace import Phase


class Likelihood(Controller):
    """Sum up the log-probabilities of the tokens that the model chose, for the thinking and the answer of each row.

    They are those of the raw distribution at temperature 1 if this controller comes before those that change it.
    Forced tokens do not count: the model did not choose them.
    """

    def __init__(self) -> None:
        self._logits: Tensor | None = None

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        self._logits = logits
        return logits

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        assert self._logits is not None
        newest = torch.tensor([row.ids[-1] for row in rows], device=self._logits.device)
        # a forced token may lie beyond the vocabulary that is predicted; it is left out below
        chosen = self._logits.gather(-1, newest.clamp(max=self._logits.shape[-1] - 1)[:, None])[:, 0]
        for row, value in zip(rows, (chosen - self._logits.logsumexp(-1)).tolist(), strict=True):
            if row.newest_kind == "injected":
                continue
            note = row.state.setdefault(self, {}).setdefault(row.newest_phase, [0.0, 0])
            note[0] += value
            note[1] += 1

    def mean(self, row: Row, phases: Sequence[Phase] = ("thinking", "answer")) -> float | None:
        """Return the mean log-probability in nats of a row's chosen tokens, None where there are none.

        Args:
            row: which.
            phases: of whose tokens.
        """
        notes = [note for phase, note in row.state.get(self, {}).items() if phase in phases]
        count = sum(n for _, n in notes)
        return sum(total for total, _ in notes) / count if count else None
