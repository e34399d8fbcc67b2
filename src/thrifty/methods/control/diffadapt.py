"""DiffAdapt: read the question, tell how hard it is, and answer it by one of three fixed strategies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.features import MeanEntropy, ReadPrompt, prompt_states
from thrifty.decoding.flow import Call, Flow, Role, conclude
from thrifty.decoding.gate import Gate, Training, evaluate, fit_gate, rare_classes
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.tuning import Tuning, divide
from thrifty.models import embedded_folder
from thrifty.models.base import Job, Model, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Message, Problem, Trace

EMBEDDED = "pebble-diffadapt"
CLASSES = ("easy", "normal", "hard")
PLAIN = "plain"
PROMPTS = ("suffix", "system", "none")


def label(accuracy: float, entropy: float, alpha: float, beta: float, gamma: float) -> str:
    """Return the class of a question, by the rule of the paper: "easy" is what is neither of the others.

    With alpha .7, beta .5 and gamma .3: (.9, .4) is normal, (.9, .8) easy, (.2, .1) hard, (.5, .4) easy.

    Args:
        accuracy: share of its samples that are right.
        entropy: mean over its samples of the mean token entropy, in nats.
        alpha: accuracy from which a question may be normal.
        beta: entropy up to which it may.
        gamma: accuracy below which a question is hard.
    """
    if accuracy >= alpha and entropy <= beta:
        return "normal"
    return "hard" if accuracy < gamma else "easy"


@dataclass(frozen=True, kw_only=True)
class DiffAdapt(FlowMethod):
    """Pick a strategy for each question (easy, normal, hard) by a small probe on the prompt's last state.

    A strategy is a prompt behind the question, a temperature and a share of the token limit. Hard questions get
    less than normal ones: more tokens seldom rescue them. The probe is trained for one model by
    ``thrifty tune diffadapt``; where it is not sure of a class, the strategy is the normal one. Reading the plain
    prompt counts as probe, unless the response goes on from there (``prompts=none``).

    The strategies' temperatures hold on greedy runs too, as in the paper; ``temperatures=false`` keeps the run's.

    Source: DiffAdapt: Difficulty-Adaptive Reasoning for Token-Efficient LLM Inference, arXiv 2510.19669;
    card ``diffadapt``. Follows the paper. Reconstruction, for it does not say: the wording of the prompts, the
    confidence below which the strategy is normal, the thresholds of the labels, the probe's width and regularisation.

    Attributes:
        probe: path of what ``thrifty tune diffadapt`` wrote, or ``pebble-diffadapt``, which comes with pebble.
        strategy: use this one for every question instead of asking the probe: ``easy``, ``normal``, ``hard``, or
            ``plain`` for the model as it is.
        confidence: probability of the likeliest class below which the strategy is ``normal``.
        prompts: where the strategy's prompt goes: ``suffix`` of the question, ``system`` message, or ``none``.
        temperatures: whether the strategies' temperatures replace the run's.
        easy_prompt: of the easy strategy.
        normal_prompt: of the normal strategy.
        hard_prompt: of the hard strategy.
        easy_temperature: of the easy strategy.
        normal_temperature: of the normal strategy.
        hard_temperature: of the hard strategy.
        easy_budget: its share of ``max_tokens``.
        normal_budget: its share of ``max_tokens``.
        hard_budget: its share of ``max_tokens``.
    """

    slug: ClassVar[str] = "diffadapt"
    needs: ClassVar[Need] = Need.TEXT | Need.HIDDEN
    thinks: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    probe: str = EMBEDDED
    strategy: str = ""
    confidence: float = 0.5
    prompts: str = "suffix"
    temperatures: bool = True
    easy_prompt: str = (
        "This question is straightforward. Solve it directly, check the result once, then give the final answer."
    )
    normal_prompt: str = "Reason step by step in an orderly way and give the final answer at the end."
    hard_prompt: str = (
        "This question is demanding and space is limited. Choose the most promising strategy first, keep to the "
        "decisive steps, and answer."
    )
    easy_temperature: float = 0.5
    normal_temperature: float = 0.8
    hard_temperature: float = 0.4
    easy_budget: float = 0.4
    normal_budget: float = 1.0
    hard_budget: float = 0.5

    def __post_init__(self) -> None:
        if self.strategy not in ("", PLAIN, *CLASSES):
            raise ThriftyError(f"diffadapt: strategy must be one of {', '.join(CLASSES)} and plain")
        if self.prompts not in PROMPTS:
            raise ThriftyError(f"diffadapt: prompts must be one of {', '.join(PROMPTS)}")
        if not all(0 < getattr(self, f"{name}_budget") <= 1 for name in CLASSES):
            raise ThriftyError("diffadapt: a budget is a share of max_tokens, above 0 and at most 1")
        if not all(0 <= getattr(self, f"{name}_temperature") <= 100 for name in CLASSES):
            raise ThriftyError("diffadapt: temperatures must be between 0 and 100")

    @functools.cached_property
    def artefact(self) -> Artefact:
        """What the tuning wrote."""
        path = embedded_folder("pebble") / "diffadapt.json" if self.probe == EMBEDDED else self.probe
        return Artefact.load(path, self.slug)

    def check(self, model: Model) -> None:
        super().check(model)
        if not self.strategy:
            assert isinstance(model, TorchModel)
            if self.probe == EMBEDDED and model.name != "pebble":
                raise ThriftyError(
                    "diffadapt needs a probe trained for your model: `thrifty tune diffadapt --out FILE`, then "
                    "diffadapt(probe=FILE); or force a strategy, as diffadapt(strategy=easy)"
                )
            self.artefact.require(model)

    def flow(self, stage: Stage, job: Job) -> Flow:
        plain = stage.model.render(job.problem.messages)
        strategy, read, note = self.strategy, None, dict[str, Any]()
        if not strategy:
            gate = self.artefact.gates["difficulty"]
            reader = ReadPrompt(gate.layer)
            (read,) = yield [Call(plain, [reader], keep=self.prompts == "none", stream=1)]
            probabilities = gate.probabilities(read.state[reader].cpu()[None])[0].tolist()
            likeliest = max(probabilities)
            sure = likeliest >= self.confidence
            strategy = gate.classes[probabilities.index(likeliest)] if sure else "normal"
            note = {"probabilities": [round(p, 4) for p in probabilities], "fallback": not sure}
        prompt = stage.render(job, self.messages(job.problem.messages, strategy))
        # states that another method taps are shown at the prompt's end only to those that are there when it is read
        goes_on = read is not None and read.keep and prompt == plain and not any(c.taps for c in stage.controllers)
        settings = self.settings_of(strategy, stage.settings)
        (row,) = yield [stage.call(prompt, settings=settings, parent=read if goes_on else None, stream=0)]
        others: list[tuple[Row, Role]] = [] if read is None else [(read, "sample" if goes_on else "probe")]
        return conclude(row, stage.method, others, {"diffadapt": {"strategy": strategy, **note}})

    def messages(self, messages: Sequence[Message], strategy: str) -> list[Message]:
        """Return a conversation with the prompt of a strategy in it."""
        text = "" if strategy == PLAIN else getattr(self, f"{strategy}_prompt")
        *before, question = messages
        if not text or self.prompts == "none":
            return list(messages)
        if self.prompts == "suffix":
            return [*before, {**question, "content": f"{question['content']}\n\n{text}"}]
        if messages[0]["role"] == "system":
            return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
        return [{"role": "system", "content": text}, *messages]

    def settings_of(self, strategy: str, settings: Settings) -> Settings:
        """Return the settings of a run as a strategy has them; 40 of 100 tokens for an easy question."""
        if strategy == PLAIN:
            return settings
        limit = max(1, int(getattr(self, f"{strategy}_budget") * settings.max_tokens))
        reserve = None if settings.answer_reserve is None else min(settings.answer_reserve, limit)
        temperature = getattr(self, f"{strategy}_temperature") if self.temperatures else settings.temperature
        return settings.with_(max_tokens=limit, answer_reserve=reserve, temperature=temperature)

    @classmethod
    def tune(cls, tuning: Tuning) -> Artefact:
        """Train the probe; options are those of the method and of `Labelling`."""
        options = tuning.read(Labelling)
        problems = tuning.problems()
        method = cls(**{f.name: getattr(options, f.name) for f in fields(cls)})
        normal = replace(method, strategy="normal", temperatures=True)  # greedy samples would all be the same
        labels, statistics, thresholds = _label(tuning, options, normal, problems)
        counts = {name: labels.count(name) for name in CLASSES}
        for name, count in counts.items():
            if not count:
                listed = ", ".join(f"{n} {name}" for name, n in counts.items())
                raise ThriftyError(
                    f"none of {len(problems)} problems is labelled {name!r} ({listed}): tune on a task of more mixed "
                    "difficulty, on more problems, or with other alpha and gamma"
                )
        layer = tuning.layer(options.layer)
        states = prompt_states(tuning.model, problems, layer, tuning.settings)
        targets = torch.tensor([CLASSES.index(name) for name in labels])
        training = Training(width=options.width, seed=tuning.settings.seed)
        train, validate, rest = divide(targets.tolist(), tuning.settings.seed)

        def fitted(targets: Tensor) -> Gate:
            return fit_gate(
                states[train], targets[train], states[validate], targets[validate], CLASSES, layer, training
            )

        gate = fitted(targets)
        chosen = {"probe": gate.logits(states[rest]).argmax(-1).tolist(), "labels": targets[rest].tolist()}
        report: dict[str, Any] = {
            "labels": counts,
            "warning": rare_classes(counts),
            "thresholds": thresholds,
            "labelling": statistics,
            "probe_on_held_out": evaluate(gate, states[rest], targets[rest]),
        }
        if options.shuffled:
            order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(tuning.settings.seed))
            control = fitted(targets[order])
            report["shuffled_labels_on_held_out"] = evaluate(control, states[rest], targets[rest])
            chosen["shuffled_labels"] = control.logits(states[rest]).argmax(-1).tolist()
        runs = {
            name: [t for (t,) in tuning.solve(replace(method, strategy=name), [problems[i] for i in rest], what=name)]
            for name in CLASSES
        }
        report["strategies_on_held_out"] = strategy_report(runs, chosen)
        made_with = tuning.about(**dataclasses.asdict(options), thresholds=thresholds)
        return Artefact(cls.slug, identity(tuning.model), made_with, thresholds, report, {"difficulty": gate})


@dataclass(frozen=True, kw_only=True)
class Labelling(DiffAdapt):
    """How the probe is trained, beside the strategies themselves.

    Attributes:
        samples: responses for each question, by the normal strategy.
        alpha: accuracy from which a question may be normal.
        beta: mean entropy in nats up to which it may; -1 for the median over questions with that accuracy.
        gamma: accuracy below which a question is hard.
        layer: whose state the probe reads; -1 for the last.
        width: of the probe's hidden layer; 0 for a linear probe.
        shuffled: also train on shuffled labels, a control that must not save anything.
    """

    samples: int = 10
    alpha: float = 0.7
    beta: float = -1.0
    gamma: float = 0.3
    layer: int = -1
    width: int = 256
    shuffled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1 or self.width < 0:
            raise ThriftyError("diffadapt: samples must be at least 1, width at least 0")


def _label(
    tuning: Tuning, options: Labelling, normal: DiffAdapt, problems: Sequence[Problem]
) -> tuple[list[str], dict[str, float], dict[str, float]]:
    """Sample every problem by the normal strategy; return labels, their statistics, and the thresholds used."""
    found = tuning.solve(normal, problems, options.samples, [MeanEntropy()], "labelling")
    accuracies = [sum(bool(t.correct) for t in traces) / len(traces) for traces in found]
    entropies = [sum(_mean_entropy(t) for t in traces) / len(traces) for traces in found]
    beta = options.beta
    if beta < 0:
        able = [e for a, e in zip(accuracies, entropies, strict=True) if a >= options.alpha]
        if not able:
            raise ThriftyError(
                f"no question is answered right in {options.alpha:.0%} of its samples, so that there is no median "
                "entropy for beta: tune on an easier task, or give beta and a lower alpha"
            )
        beta = float(torch.tensor(able, dtype=torch.float64).quantile(0.5))
    thresholds = {"alpha": options.alpha, "beta": round(beta, 6), "gamma": options.gamma}
    labels = [label(a, e, options.alpha, beta, options.gamma) for a, e in zip(accuracies, entropies, strict=True)]
    statistics = {
        "samples": float(options.samples),
        "mean_accuracy": round(sum(accuracies) / len(accuracies), 4),
        "mean_entropy": round(sum(entropies) / len(entropies), 4),
    }
    return labels, statistics, thresholds


def _mean_entropy(trace: Trace) -> float:
    total, count = trace.events.get("entropy", (0.0, 0))
    return float(total / count) if count else 0.0


def strategy_report(
    runs: Mapping[str, Sequence[Trace]], chosen: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Tell what each strategy gives for every question, what choices among them give, and what the best would.

    Args:
        runs: judged traces of the same questions by each strategy of `CLASSES`.
        chosen: by who chooses, the index of the strategy for each question.

    Returns:
        Mean generated tokens and accuracy by strategy, by chooser, and of the ``oracle``: for each question the
        shortest right response, or the shortest where none is right.
    """

    def summed(traces: Sequence[Trace]) -> dict[str, float]:
        n = len(traces)
        return {
            "tokens": round(sum(t.usage.generated for t in traces) / n, 1),
            "accuracy": round(sum(bool(t.correct) for t in traces) / n, 4),
        }

    questions = list(zip(*(runs[name] for name in CLASSES), strict=True))
    best = [min(traces, key=lambda t: (not t.correct, t.usage.generated)) for traces in questions]
    picked = {who: [traces[i] for traces, i in zip(questions, which, strict=True)] for who, which in chosen.items()}
    return {name: summed(traces) for name, traces in {**runs, **picked, "oracle": best}.items()}
