"""Particle filtering: several partial solutions at once, resampled after each step by a process verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from thrifty.decoding.flow import Flow
from thrifty.decoding.sampling import row_key, uniforms
from thrifty.errors import ThriftyError
from thrifty.methods.base import Stage
from thrifty.methods.shared.steps import Growth, StepwiseMethod
from thrifty.models.base import Job

CLIP = 1e-7
STREAM = 3
"""Resampling draws from a stream of its own."""


def weights(scores: Sequence[float]) -> list[float]:
    """Return the softmax over logit(score), scores clipped to [1e-7, 1 - 1e-7].

    The softmax of logits is the share of the odds: .5 and .75 have odds of 1 and 3, so they weigh .25 and .75.

    Args:
        scores: of the particles, from 0 to 1.
    """
    clipped = np.clip(np.asarray(scores, dtype=np.float64), CLIP, 1 - CLIP)
    odds = clipped / (1 - clipped)
    shares: list[float] = (odds / odds.sum()).tolist()
    return shares


def resample(weights: Sequence[float], draws: Sequence[float]) -> list[int]:
    """Return the particle that each draw picks, with replacement.

    Args:
        weights: of the particles, which sum to 1.
        draws: uniform numbers in [0, 1).
    """
    cumulative = np.cumsum(np.asarray(weights, dtype=np.float64))
    places = np.searchsorted(cumulative, np.asarray(draws) * cumulative[-1], side="right")
    picked: list[int] = np.minimum(places, len(weights) - 1).tolist()
    return picked


@dataclass(frozen=True, kw_only=True)
class ParticleFiltering(StepwiseMethod):
    """Advance several partial solutions by a step each, then draw from them by the verifier's scores, and so on.

    Particles that have ended keep their score and take part in the draws; at the end the one with the largest weight
    is the response.

    Source: Rollout Roulette: A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using Particle-Based
    Monte Carlo Methods, arXiv 2502.01618, as card ``astar-decoding`` tells it. Reconstruction: the numbers, and that
    the best particle is completed greedily if none has ended at the limit on steps.

    Attributes:
        particles: partial solutions at a time.
        step: where a step ends: at a blank line (``paragraph``), at a ``line``, or with the ``response``.
        step_tokens: limit on a step.
        temperature: of the steps; -1 for that of the run, with which one particle and ``step=response`` are plain.
        depth: limit on the steps.
        verifier: which scores: ``pebble-verifier`` or a folder.
    """

    slug: ClassVar[str] = "particle-filtering"
    particles: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.particles < 1:
            raise ThriftyError(f"{self.slug}: particles must be at least 1")

    @property
    def width(self) -> int:
        return self.particles

    def flow(self, stage: Stage, job: Job) -> Flow:
        growth = Growth(stage, job, self.judge)
        key = np.uint64(row_key(stage.settings.seed, job.problem.id, job.sample))
        (root,) = yield from growth.root()
        particles, scores = [root] * self.particles, [0.0] * self.particles
        steps = 0
        while any(node.open for node in particles) and steps < self.depth:
            if steps:
                counters = np.arange(steps * self.particles, (steps + 1) * self.particles, dtype=np.uint64)
                picked = resample(weights(scores), uniforms(np.full(self.particles, key), counters, STREAM).tolist())
                for lost in set(range(self.particles)) - set(picked):
                    growth.forget(particles[lost])
                particles, scores = [particles[i] for i in picked], [scores[i] for i in picked]
            places = [i for i, node in enumerate(particles) if node.open]
            if not places:
                break
            grown = yield from growth.grow([particles[i] for i in places])
            for i, node, score in zip(places, grown, growth.score(grown), strict=True):
                particles[i], scores[i] = node, score
            steps += 1
        best = max(range(self.particles), key=scores.__getitem__)
        chosen, incomplete = particles[best], particles[best].open
        if incomplete:
            (chosen,) = yield from growth.complete(chosen)
        noted = {
            "v": round(scores[best], 6),
            "scores": [round(score, 4) for score in scores],
            "tokens": growth.tokens,
            "prm_calls": growth.scored,
            "steps": steps,
            "incomplete": incomplete,
        }
        return growth.conclude(chosen, {self.slug: noted})
