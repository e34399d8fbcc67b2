"""CGRS: suppress reflection words with a probability set by how certain a probed answer is."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.gate import auroc, calibrate_threshold
from thrifty.decoding.probe import probe_answers
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import uniforms
from thrifty.errors import ThriftyError
from thrifty.methods.base import Method
from thrifty.methods.control.vanilla import Vanilla
from thrifty.methods.tuning import Tuning
from thrifty.models.base import Model
from thrifty.models.torch import TorchModel
from thrifty.traces.segments import marker_ids

TRIGGERS = ("Wait", "But", "Alternatively", "Alternative", "Hmm")
MASKED = -1e9
CERTAINTY_OPTIONS = ("cue", "probe_tokens", "close_thinking", "reference_vocabulary")
"""Options on which the certainty of an answer depends, and with it every calibration."""
WEAK = 0.6
"""Area under the ROC curve of certainty below which a calibration is worth a warning."""
STREAM = 1
"""Suppression draws from a stream of its own: sampling must not shift when nothing is masked."""


def certainty(entropies: Sequence[float], vocabulary_size: int) -> float:
    """Return 1 minus the mean entropy of the answer tokens over its maximum, clamped to [0, 1].

    Entropies of 0 and 0.16770 nats over 4 tokens give 0.93951.

    Args:
        entropies: in nats, one for each answer token.
        vocabulary_size: tokens that the softmax really ranges over.
    """
    mean = sum(entropies) / len(entropies)
    return min(1.0, max(0.0, 1.0 - mean / math.log(vocabulary_size)))


def suppression_probability(certainty: float, delta: float) -> float:
    """Return max(0, (C - delta) / (1 - delta)); 0.93951 at 0.9 gives 0.39515. A delta of 1 suppresses never."""
    if delta >= 1.0:
        return 0.0
    return max(0.0, (certainty - delta) / (1.0 - delta))


class _Suppress(Controller):
    def __init__(self, method: CGRS, model: TorchModel) -> None:
        self.method = method
        self.vocabulary_size = method.reference_vocabulary or model.vocabulary_size
        self.delta = method.bar
        ids = sorted(i for i in marker_ids(model.texts.all(), method.triggers) if i < model.vocabulary_size)
        self.triggers = torch.tensor(ids, dtype=torch.int64, device=model.device)

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.state[self] = 0.0
            row.events["cgrs"] = []

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        probabilities = [row.state[self] if row.thinking else 0.0 for row in rows]
        if not any(probabilities):
            return logits
        keys = np.array([row.key for row in rows], dtype=np.uint64)
        counters = np.array([len(row.ids) for row in rows], dtype=np.uint64)
        masked = np.flatnonzero(uniforms(keys, counters, STREAM) < probabilities)
        if not len(masked):
            return logits
        places = torch.from_numpy(masked).to(logits.device)
        return logits.index_put((places[:, None], self.triggers), logits.new_tensor(MASKED))

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        method = self.method
        due = [row for row in rows if row.paragraph_ended and row.thinking and not row.forced]
        if not due or self.delta >= 1.0:
            return
        for row, probe in zip(
            due, probe_answers(batch, due, method.cue, method.close_thinking, method.probe_tokens), strict=True
        ):
            sure = certainty(probe.entropies, self.vocabulary_size) if probe.ids else 0.0
            row.state[self] = suppression_probability(sure, self.delta)
            row.events["cgrs"].append([len(row.ids), round(sure, 6), round(row.state[self], 6), probe.text])


class _OnlyProbe(_Suppress):
    """Probe, but suppress nothing."""

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        return logits


@dataclass(frozen=True, kw_only=True)
class CGRS(Method):
    """Suppress "Wait", "But", "Hmm" and the like once the model is certain of its answer.

    At each blank line of the thinking a tentative answer is probed; with C = 1 - mean(H) / ln|V| over its
    tokens, the trigger words are masked at every later step with probability max(0, (C - delta)/(1 - delta)).

    Source: Efficient Reasoning for Large Reasoning Language Models via Certainty-Guided Reflection
    Suppression, arXiv 2508.05337; card ``cgrs``. Follows the paper. Reconstructed, for the paper does not
    say: the probe's limit and end (the closing brace), suppression off after the thinking.

    The paper's delta belongs to vocabularies of 128k tokens and more. ``thrifty tune cgrs`` finds the one that
    parts right tentative answers from wrong ones best on a model of yours.

    Attributes:
        delta: certainty below which nothing is suppressed. 1 never suppresses, nor probes.
        calibration: path of what ``thrifty tune cgrs`` wrote; its delta is used instead.
        triggers: the words, in every spelling of the vocabulary that is one token. A model that begins its
            reflections with other words, as pebble does with "Let me double-check", evades the paper's list.
        cue: announces the tentative answer.
        probe_tokens: limit on the tentative answer.
        close_thinking: end the thinking before the cue, for models that answer only then; the paper does not.
        reference_vocabulary: normalise entropies by the logarithm of this instead of the model's own
            vocabulary size, 0 for its own: with 640 tokens delta = 0.9 is a much stricter bar than with 152k.
    """

    slug: ClassVar[str] = "cgrs"
    needs: ClassVar[Need] = Need.LOGITS | Need.KV
    delta: float = 0.9
    calibration: str = ""
    triggers: tuple[str, ...] = TRIGGERS
    cue: str = "**Final Answer:** \\boxed{"
    probe_tokens: int = 20
    close_thinking: bool = False
    reference_vocabulary: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.delta <= 1.0:
            raise ThriftyError("cgrs: delta must be between 0 and 1")
        if not self.triggers or not all(isinstance(word, str) for word in self.triggers):
            raise ThriftyError("cgrs: triggers must be words, as triggers=('Wait','Hmm')")
        if self.probe_tokens < 1:
            raise ThriftyError("cgrs: probe_tokens must be at least 1")

    @functools.cached_property
    def bar(self) -> float:
        """The delta in use."""
        if not self.calibration:
            return self.delta
        artefact = Artefact.load(self.calibration, self.slug)
        for name in CERTAINTY_OPTIONS:
            made, given = artefact.settings.get(name), getattr(self, name)
            if made != given:
                raise ThriftyError(
                    f"cgrs: {self.calibration} was made with {name}={made!r}, which certainty depends on, "
                    f"but {name} is {given!r}: give the same to both"
                )
        return float(artefact.values["delta"])

    def check(self, model: Model) -> None:
        super().check(model)
        if self.calibration:
            assert isinstance(model, TorchModel)
            Artefact.load(self.calibration, self.slug).require(model)
            _ = self.bar

    def controllers(self, model: TorchModel) -> list[Controller]:
        return [_Suppress(self, model)]

    @classmethod
    def tune(cls, tuning: Tuning) -> Artefact:
        """Calibrate delta; the options are those of the method."""
        method = tuning.read(cls)
        problems = tuning.problems()
        # the bar that probes are compared with here does not matter; at 1 there would be none
        watch = _OnlyProbe(dataclasses.replace(method, delta=0.9, calibration=""), tuning.model)
        found: list[tuple[float, bool]] = []
        for problem, (trace,) in zip(problems, tuning.solve(Vanilla(), problems, 1, [watch], "probes"), strict=True):
            for _, sure, _, text in trace.events["cgrs"]:
                answer = tuning.task.extract(problem, f"\\boxed{{{text}}}") if text.strip() else None
                found.append((sure, tuning.task.score(problem, answer) >= 1.0))
        scores = torch.tensor([sure for sure, _ in found], dtype=torch.float64)
        right = torch.tensor([good for _, good in found], dtype=torch.bool)
        best = calibrate_threshold(scores, right)
        if best is None:
            raise ThriftyError(
                f"cgrs: {int(right.sum())} of {len(found)} probed answers are right, and delta is found between right "
                "and wrong ones: tune on more problems, or on another task"
            )
        delta = min(max(round(best[0], 9), 0.0), 1 - 1e-9)
        area = auroc(scores, right) or 0.0
        report = {
            "probes": {"right": int(right.sum()), "wrong": int((~right).sum())},
            "auroc_of_certainty": round(area, 4),
            "warning": ["certainty hardly tells right from wrong answers on this model and task"] * (area < WEAK),
            "calibrated": _bar_report(scores, right, delta),
            "as_given": _bar_report(scores, right, method.delta),
            # the vocabulary for which the paper's delta would put the bar at the same entropy
            "equivalent_reference_vocabulary": round(watch.vocabulary_size ** min(50.0, (1 - delta) / (1 - 0.9))),
        }
        made_with = tuning.about(**dataclasses.asdict(method), vocabulary_size=watch.vocabulary_size)
        return Artefact(cls.slug, identity(tuning.model), made_with, {"delta": delta}, report)


def _bar_report(scores: Tensor, right: Tensor, delta: float) -> dict[str, Any]:
    above = scores > delta

    def share(part: Tensor) -> float | None:
        return round(float(part.double().mean()), 4) if len(part) else None

    return {
        "delta": delta,
        "probes_above": share(above),
        "right_above": share(right[above]),
        "right_below": share(right[~above]),
    }
