"""Best-of-n: of several samples, the one that a scorer likes best."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from thrifty.catalogue import Need
from thrifty.decoding.controller import Controller
from thrifty.decoding.flow import Flow
from thrifty.decoding.likelihood import Likelihood
from thrifty.decoding.row import Row
from thrifty.decoding.verifier import EMBEDDED, Verifier
from thrifty.errors import ThriftyError
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.shared.candidates import answers_of, choose, sampling
from thrifty.models.base import Job, Model, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.selection import argbest

SCORERS = {"shortest": Need.TEXT, "likelihood": Need.LOGITS, "verifier": Need.HIDDEN}
"""The scorers, and the access that each of them needs."""


@dataclass(frozen=True, kw_only=True)
class BestOfN(FlowMethod):
    """Sample several responses and return the one with the highest score.

    - ``shortest``: the fewest tokens (Shortest@n, which needs no scorer at all).
    - ``likelihood``: the highest mean log-probability of the tokens that the model chose, at temperature 1.
    - ``verifier``: the highest probability of being right, as a trained verifier sees it from the last token.

    A response without an answer is chosen only if none has one, and ties go to the first.

    Source: Training Verifiers to Solve Math Word Problems, arXiv 2110.14168, for the choice by a verifier.

    Attributes:
        samples: n, responses to each problem; 1 is the model as it is.
        scorer: ``shortest``, ``likelihood`` or ``verifier``.
        verifier: name or folder of the verifier (`thrifty.decoding.verifier`). Reading the responses costs nothing
            where it reads the generating model's own states; else every token that its trunk reads counts.
        temperature: of the samples where the run is greedy, which would make them all alike.
    """

    slug: ClassVar[str] = "best-of-n"
    needs: ClassVar[Need] = Need.TEXT
    thinks: ClassVar[bool] = False
    samples: int = 5
    scorer: str = "shortest"
    verifier: str = EMBEDDED
    temperature: float = 0.6

    def __post_init__(self) -> None:
        if self.samples < 1 or not 0 < self.temperature <= 100:
            raise ThriftyError("best-of-n: samples must be at least 1, temperature above 0 and at most 100")
        if self.scorer not in SCORERS:
            raise ThriftyError(f"best-of-n: scorer is one of {', '.join(SCORERS)}")

    def settings(self, settings: Settings) -> Settings:
        return sampling(settings, self.samples, self.temperature)

    @functools.cached_property
    def _verifier(self) -> Verifier:
        return Verifier.load(self.verifier)

    def check(self, model: Model) -> None:
        super().check(model)
        model.require(SCORERS[self.scorer], self.spec)
        if self.scorer == "verifier":
            assert isinstance(model, TorchModel)
            self._verifier.trunk(model)

    def controllers(self, model: TorchModel) -> list[Controller]:
        if self.scorer == "verifier":
            return self._verifier.controllers(model)
        return [Likelihood()] if self.scorer == "likelihood" else []

    def flow(self, stage: Stage, job: Job) -> Flow:
        prompt = stage.render(job)
        keep = self.scorer == "verifier"
        call = stage.call(prompt, controllers=stage.own, keep=keep, messages=job.problem.messages)
        rows = yield [call] * self.samples
        scores = self._scores(stage, rows)
        answers = answers_of(rows)
        best = argbest([None if answer is None else score for answer, score in zip(answers, scores, strict=True)])
        noted = [None if score is None else round(score, 6) for score in scores]
        return choose(stage, self.slug, rows, best, {"answers": answers, "scores": noted})

    def _scores(self, stage: Stage, rows: Sequence[Row]) -> Sequence[float | None]:
        if self.scorer == "shortest":
            return [-float(row.usage.generated + row.usage.latent_steps) for row in rows]
        if self.scorer == "likelihood":
            (likelihood,) = stage.own
            assert isinstance(likelihood, Likelihood)
            return [likelihood.mean(row) for row in rows]
        scores: list[float] = self._verifier.score(rows).tolist()
        for row in rows:
            row.kept = None  # the caches were kept for their last states only
        return scores
