"""Latent-Trajectory signals: the path of the hidden states tells good samples from bad ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.controller import Controller
from thrifty.decoding.flow import Flow
from thrifty.decoding.gate import Gate, Training, auroc, evaluate, fit_gate
from thrifty.decoding.likelihood import Likelihood
from thrifty.decoding.row import Row
from thrifty.decoding.trajectory import Path, Trajectory, depth_signals, signals
from thrifty.errors import ThriftyError
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.shared.acceptance import (
    Labelled,
    calibrate_threshold,
    cross_validate,
    first_above,
    passes,
    play,
)
from thrifty.methods.shared.candidates import answers_of, choose, sampling
from thrifty.methods.tuning import Tuning, divide
from thrifty.models.base import Job, Model, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.selection import argbest
from thrifty.traces.trace import Trace

ORIENTATION = {"net": 1, "cumulative": -1, "aligned": 1}
"""Signs that make a higher score mean more likely right."""
BASELINES = {
    "layer_magnitude": 1,
    "layer_angle": -1,
    "margin": 1,
    "entropy": -1,
    "perplexity": -1,
    "length": -1,
}
"""The same for what the signals are compared with; NOT FOUND for the layers, whose signs are Chain-of-Embedding's."""
Note = dict[str, float | None]
"""Signals by name, None where they are undefined."""
POLICIES = ("sequential", "early")
MADE_WITH = ("window", "divisor", "merge", "checkpoint")
"""Options that the thresholds and the chooser depend on."""


@dataclass(frozen=True, kw_only=True)
class LatentTrajectory(FlowMethod):
    """Accept the first sample whose hidden states moved far and straight; without one, vote.

    The states behind every layer are averaged over windows of the thinking, and the path of these means gives three
    signals: net change, cumulative change and the alignment of the steps with the whole
    (`thrifty.decoding.trajectory`). Two policies use them:

    - ``sequential``: draw one sample after the other and take the first whose signal is above a threshold; if none
      is, take the majority's answer. Without a threshold none passes: calibrate one with
      ``thrifty tune latent-trajectory``, for it holds for one model and task only.
    - ``early``: start all samples, stop them after some thinking, and go on with the most promising one only. Tuning
      trains what chooses; without it the signal does.

    Traces of a single window have no signals. They are not accepted, nor chosen where others have some: take windows
    so short that a trace has four or more.

    Source: Tracing the Traces: Latent Temporal Signals for Efficient and Accurate Reasoning, arXiv 2510.10494;
    card ``latent-trajectory``. Follows the paper, and the release where ``divisor`` says so. Reconstruction: the
    search for the threshold; a logistic model in place of the random forest, whose size is NOT FOUND.

    Attributes:
        samples: K, responses to each problem at the most; 1 is the model as it is.
        policy: ``sequential`` or ``early``.
        signal: ``net``, ``cumulative`` or ``aligned``.
        threshold: tau, above which a sample is accepted, of the signal as oriented: cumulative change counts
            negative. None for the calibrated one.
        calibration: path of what ``thrifty tune latent-trajectory`` wrote; empty for none.
        window: tokens of a segment, 0 for segments between newlines. The paper's 500 suits traces of thousands.
        merge: join a last window of less than a quarter with the one before.
        divisor: of net change: ``paper`` (windows) or ``release`` (steps between windows).
        checkpoint: thinking tokens after which ``early`` chooses.
        temperature: of the samples where the run is greedy, which would make them all alike.
        baselines: also note what the signals are compared with: geometry along depth, logit margin, entropy and
            perplexity.
    """

    slug: ClassVar[str] = "latent-trajectory"
    needs: ClassVar[Need] = Need.SAMPLING | Need.HIDDEN
    samples: int = 5
    policy: str = "sequential"
    signal: str = "net"
    threshold: float | None = None
    calibration: str = ""
    window: int = 500
    merge: bool = False
    divisor: str = "paper"
    checkpoint: int = 2000
    temperature: float = 0.6
    baselines: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("policy", POLICIES), ("signal", (*ORIENTATION,)), ("divisor", ("paper", "release"))):
            if getattr(self, name) not in allowed:
                raise ThriftyError(f"latent-trajectory: {name} is one of {', '.join(allowed)}")
        if self.threshold is not None and not isinstance(self.threshold, int | float):
            raise ThriftyError("latent-trajectory: threshold must be a number")
        if self.samples < 1 or self.window < 0 or self.checkpoint < 1:
            raise ThriftyError("latent-trajectory: samples and checkpoint must be at least 1, window at least 0")
        if not 0 < self.temperature <= 100:
            raise ThriftyError("latent-trajectory: temperature must be above 0 and at most 100")

    @functools.cached_property
    def artefact(self) -> Artefact | None:
        """What the tuning wrote, None without."""
        return Artefact.load(self.calibration, self.slug) if self.calibration else None

    @property
    def tau(self) -> float:
        """The threshold that holds; infinite if there is none."""
        if self.threshold is None and self.artefact is not None:
            return float(self.artefact.values["thresholds"][self.signal])
        return math.inf if self.threshold is None else self.threshold

    def check(self, model: Model) -> None:
        super().check(model)
        if self.artefact is None:
            return
        assert isinstance(model, TorchModel)
        self.artefact.require(model)
        made = {name: self.artefact.values[name] for name in MADE_WITH}
        if made != {name: getattr(self, name) for name in MADE_WITH}:
            listed = ",".join(f"{name}={value}" for name, value in made.items())
            raise ThriftyError(f"{self.calibration} was made for other options: write latent-trajectory({listed},...)")

    def settings(self, settings: Settings) -> Settings:
        return sampling(settings, self.samples, self.temperature)

    def controllers(self, model: TorchModel) -> list[Controller]:
        stop = self.policy == "early"
        tracker = Trajectory(model, self.window, self.checkpoint, stop, self.baselines)
        return [tracker, Likelihood()] if self.baselines else [tracker]

    def flow(self, stage: Stage, job: Job) -> Flow:
        return self._early(stage, job) if self.policy == "early" else self._sequential(stage, job)

    def _sequential(self, stage: Stage, job: Job) -> Flow:
        prompt, tau = stage.render(job), self.tau
        # without a threshold nothing can be accepted: all are wanted, and at once
        count = self.samples if tau == math.inf else 1
        rows: list[Row] = []
        notes: list[Note] = []
        while len(rows) < self.samples and not (notes and passes(self.score(notes[-1]), tau)):
            more = yield [stage.call(prompt, controllers=stage.own) for _ in range(count)]
            rows, notes = rows + more, notes + [self.note(stage, row) for row in more]
        answers = answers_of(rows)
        chosen, _ = first_above([self.score(note) for note in notes], answers, tau)
        accepted = passes(self.score(notes[-1]), tau)
        return choose(stage, self.slug, rows, chosen, {"accepted": accepted, "answers": answers, "signals": notes})

    def _early(self, stage: Stage, job: Job) -> Flow:
        prompt = stage.render(job)
        rows = yield [stage.call(prompt, controllers=stage.own, keep=True) for _ in range(self.samples)]
        notes = [self.note(stage, row) for row in rows]
        chosen = argbest([self.promise(note) for note in notes]) or 0
        events: dict[str, object] = {"signals": notes, "stopped": [row.stopped == "checkpoint" for row in rows]}
        begun = rows[chosen]
        for row in rows:
            if row is not begun:
                row.kept = None  # their caches are as long as their prompts and thoughts
        if begun.stopped == "checkpoint":
            # from the same random stream: what it writes is what it would have written
            (rows[chosen],) = yield [stage.call(parent=begun, stream=chosen)]
            rows[chosen].usage = begun.usage + rows[chosen].usage
        begun.kept = None
        return choose(stage, self.slug, rows, chosen, events)

    def note(self, stage: Stage, row: Row) -> Note:
        """Return the signals of a row's trace, None where they are undefined, and what reports compare them with."""
        tracker = stage.own[0]
        path: Path = row.state[tracker]
        means = path.means(self.merge)
        found: Note = {"length": path.tokens, "segments": len(means), **self.signals_of(means)}
        if path.at_checkpoint is not None and self.policy == "sequential":
            early = self.signals_of(path.at_checkpoint)
            found |= {f"early_{name}": value for name, value in early.items()}
        if self.baselines and path.tokens:
            likelihood = stage.own[1]
            assert isinstance(likelihood, Likelihood)
            mean = likelihood.mean(row, ("thinking",))
            found |= {name: _plain(value) for name, value in depth_signals(means).items()}
            margin, entropy = (_plain(total / path.tokens) for total in path.lens)
            found |= {
                "margin": margin,
                "entropy": entropy,
                "perplexity": None if mean is None else _plain(math.exp(-mean)),
            }
        return found

    def signals_of(self, means: torch.Tensor) -> Note:
        """Return the three signals of a path, None where they are undefined."""
        return {name: _plain(value) for name, value in signals(means, self.divisor).items()}

    def score(self, note: Note) -> float | None:
        """Return the method's signal, oriented so that higher is better."""
        return oriented(note, self.signal)

    def promise(self, note: Note) -> float | None:
        """Return what the chooser thinks of a partial trace: the trained one if there is one, else the signal."""
        gate = self.artefact.gates.get("chooser") if self.artefact is not None else None
        values = [note[name] for name in ORIENTATION]
        if gate is None or None in values:
            return self.score(note) if gate is None else None
        return float(gate.probabilities(torch.tensor([values]))[0, 1])

    @classmethod
    def tune(cls, tuning: Tuning) -> Artefact:
        """Calibrate the threshold of each signal and train the chooser; options are those of the method."""
        options = tuning.read(cls)
        tuning = replace(tuning, settings=options.settings(tuning.settings))
        one = replace(options, samples=1, policy="sequential", threshold=None, calibration="")
        groups = tuning.solve(one, tuning.problems(), options.samples, what="sampling")
        report: dict[str, Any] = {"majority": asdict(play(labelled(groups, "net"), math.inf))}
        thresholds = {}
        for name in ORIENTATION:
            questions = labelled(groups, name)
            thresholds[name] = calibrate_threshold(questions)
            report[name] = {
                "threshold": thresholds[name],
                "auroc": area_under(questions),
                "cross_validated": asdict(cross_validate(questions)),
            }
        gates = {}
        try:
            gates["chooser"], report["chooser_on_held_out"] = _train_chooser(groups, tuning)
        except ThriftyError as error:  # the thresholds are of use without it
            report["warning"] = [f"no chooser was trained: {error}"]
        values = {"thresholds": thresholds, **{name: getattr(options, name) for name in MADE_WITH}}
        return Artefact(cls.slug, identity(tuning.model), tuning.about(**asdict(options)), values, report, gates)


def _plain(value: float) -> float | None:
    """Return six digits of a number, None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(f"{value:.6g}")


def oriented(note: Note, name: str) -> float | None:
    """Return a signal with the sign that makes higher mean more likely right."""
    value = note.get(name)
    return None if value is None else {**ORIENTATION, **BASELINES}[name] * value


def note_of(trace: Trace) -> Note:
    """Return what was noted of the only sample of a trace."""
    note: Note = trace.events[LatentTrajectory.slug]["signals"][0]
    return note


def labelled(groups: Sequence[Sequence[Trace]], name: str) -> list[Labelled]:
    """Return judged samples as a policy sees them.

    Args:
        groups: traces of one sample each, those of a question together.
        name: of the signal.
    """
    return [
        Labelled(
            [oriented(note_of(trace), name) for trace in traces],
            [bool(trace.correct) for trace in traces],
            [trace.answer for trace in traces],
            [trace.usage.generated for trace in traces],
        )
        for traces in groups
    ]


def area_under(questions: Sequence[Labelled]) -> float | None:
    """Return the AUROC of the scores over all samples that have one, None where all are right or wrong."""
    pairs = [(s, c) for q in questions for s, c in zip(q.scores, q.correct, strict=True) if s is not None]
    scores, correct = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float64) for i in (0, 1))
    area = auroc(scores, correct > 0)
    return None if area is None else round(area, 4)


def _train_chooser(groups: Sequence[Sequence[Trace]], tuning: Tuning) -> tuple[Gate, dict[str, Any]]:
    """Train the chooser of partial traces on the signals at the checkpoint; traces of a question stay together."""
    parts: list[tuple[Tensor, Tensor]] = []
    right = [[bool(trace.correct) for trace in traces] for traces in groups]
    for questions in divide([any(of) + all(of) for of in right], tuning.settings.seed):
        traces = [trace for i in questions for trace in groups[i]]
        notes = [(note_of(trace), int(bool(trace.correct))) for trace in traces]
        rows = [([note.get(f"early_{name}", note[name]) for name in ORIENTATION], label) for note, label in notes]
        kept = [(values, label) for values, label in rows if None not in values]
        features = torch.tensor([values for values, _ in kept]).reshape(-1, len(ORIENTATION))
        parts.append((features, torch.tensor([label for _, label in kept], dtype=torch.int64)))
    training = Training(width=0, learning_rate=0.03, balanced=True, seed=tuning.settings.seed)
    gate = fit_gate(*parts[0], *parts[1], ("wrong", "right"), tuning.model.layers, training)
    return gate, evaluate(gate, *parts[2])
