"""What gates look at: the state at a prompt's end, and how uncertain a response was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.probe import entropy
from thrifty.decoding.row import Row
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Problem


class ReadPrompt(Controller):
    """Keep the state of the last prompt token in ``row.state`` and write nothing.

    Args:
        layer: whose state ``(hidden,)`` is kept, float32.
    """

    def __init__(self, layer: int) -> None:
        self.taps = (layer,)

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.stop("read")

    def see_hidden(self, rows: Sequence[Row], hidden: Mapping[int, Tensor]) -> None:
        for row, state in zip(rows, hidden[self.taps[0]].float(), strict=True):
            row.state[self] = state


class MeanEntropy(Controller):
    """Note in ``row.events["entropy"]`` the sum of the entropies of the distributions drawn from, and their number.

    The entropies, in nats, are those of the raw distributions over the whole vocabulary if the controller comes
    before those that change them. Forced tokens are not counted: they are not drawn.
    """

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        for row, value in zip(rows, entropy(logits).tolist(), strict=True):
            if not row.forced:
                note = row.events.setdefault("entropy", [0.0, 0])
                note[0] += value
                note[1] += 1
        return logits


def prompt_states(model: TorchModel, problems: Iterable[Problem], layer: int, settings: Settings) -> Tensor:
    """Return the state of the last prompt token of each problem, float32 ``(problems, hidden)`` on the CPU.

    Args:
        model: which reads.
        problems: whose plain prompts are read.
        layer: whose states are wanted.
        settings: of the run; only the batch size matters.
    """
    reader = ReadPrompt(layer)
    jobs = [Job(replace(problem, id=str(i))) for i, problem in enumerate(problems)]
    plans = ((job, Plan(model.render(job.problem.messages), [reader])) for job in jobs)
    states = {int(row.job.problem.id): row.state[reader].cpu() for row in decode_rows(model, plans, settings)}
    return torch.stack([states[i] for i in range(len(jobs))])
