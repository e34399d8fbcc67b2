"""First Try Matters: stop thinking when a candidate answer appears."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.gate import Gate, Training, calibrate_threshold, evaluate, fit_gate, rare_classes
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import Method, TextSteering
from thrifty.methods.control.vanilla import Vanilla
from thrifty.methods.tuning import Tuning, divide
from thrifty.models.base import Model
from thrifty.models.torch import TorchModel
from thrifty.traces.answers import extract_candidates
from thrifty.traces.segments import Transitions, analyse_transitions
from thrifty.traces.trace import Problem, Trace

THETA_C, THETA_Q = 0.5, 0.05
TRIES = (1, 3)
"""The paper's thresholds, and its numbers of tries without and with reflection."""


def stop_line(scores: Sequence[float], threshold: float, tries: int) -> int | None:
    """Return the line (from 1) after which the thinking stops, None if it never does.

    Scores .1 .6 .2 .7 .9 at threshold .5: one try stops after line 2, three tries after line 5.

    Args:
        scores: probability that each line holds a candidate answer.
        threshold: theta_C, above which a line counts.
        tries: n_stop, candidate lines to wait for.
    """
    count = 0
    for number, score in enumerate(scores, start=1):
        count += score > threshold
        if count == tries:
            return number
    return None


@dataclass
class _Seen:
    """What is known of a row: the candidate lines to wait for, and those seen."""

    tries: int
    count: int = 0


def _completes_a_thought(row: Row) -> bool:
    # the line behind a blank one would be scored for the candidate before it
    return row.line_ended and row.thinking and bool(row.line_text().strip())


class _StopAtCandidate(Controller):
    """Stop by the regular expressions."""

    def __init__(self, tries: int) -> None:
        self.tries = tries

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if not _completes_a_thought(row):
                continue
            candidate = extract_candidates(row.line_text())
            if candidate is None:
                continue
            seen = row.state.setdefault(self, _Seen(self.tries))
            seen.count += 1
            row.events.setdefault("first-try", []).append([len(row.ids), candidate])
            if seen.count == seen.tries:
                row.close_thinking("first-try")


class _StopByGates(Controller):
    """Stop by the trained detector (CAD), as late as the trained controller (QRC) says of the question."""

    def __init__(self, method: FirstTry, model: TorchModel) -> None:
        self.method = method
        self.theta_c, self.theta_q = method.thresholds
        self.detector = method.artefact.gates["candidate"].to(model.device)
        found = method.artefact.gates.get("reflection")
        self.reflection = found.to(model.device) if found else None
        self.taps = sorted({self.detector.layer, *([self.reflection.layer] if self.reflection else [])})

    def see_hidden(self, rows: Sequence[Row], hidden: Mapping[int, Tensor]) -> None:
        if new := [i for i, row in enumerate(rows) if self not in row.state]:
            self._read_questions([rows[i] for i in new], hidden, new)
        due = [i for i, row in enumerate(rows) if row.ids and _completes_a_thought(row)]
        if not due:
            return
        scores = self.detector.probabilities(hidden[self.detector.layer][due])[:, 1].tolist()
        for row, score in zip((rows[i] for i in due), scores, strict=True):
            if score > self.theta_c:
                seen = row.state[self]
                seen.count += 1
                row.events.setdefault("first-try", []).append([len(row.ids), round(score, 4)])
                if seen.count == seen.tries:
                    row.close_thinking("first-try")

    def _read_questions(self, rows: Sequence[Row], hidden: Mapping[int, Tensor], places: list[int]) -> None:
        for row in rows:
            row.state[self] = _Seen(self.method.tries)
        if self.reflection is None:
            return
        scores = self.reflection.probabilities(hidden[self.reflection.layer][places])[:, 1].tolist()
        for row, score in zip(rows, scores, strict=True):
            if row.continues:  # its newest state is not that of a question
                continue
            row.state[self].tries = self.method.reflective_tries if score > self.theta_q else self.method.tries
            row.events["first-try-question"] = {"reflection": round(score, 4), "tries": row.state[self].tries}


@dataclass(frozen=True, kw_only=True)
class FirstTry(Method):
    """Close the thinking at the n-th line that states a candidate answer; the model then answers itself.

    Without ``gates`` the candidate detector is the card's regular expressions, and every question gets the same
    number of tries (the paper's "CAD only" is 1). ``thrifty tune first-try`` trains two gates on traces of the
    model itself: the detector (CAD) on the state at each line's end, and the question-aware controller (QRC) on
    that at the prompt's end, which gives more tries to questions on which it expects a reflection to mend the
    answer. They read what the stream computes anyway and cost no forward pass.

    Source: First Try Matters: Revisiting the Role of Reflection in Reasoning Models, arXiv 2510.08308;
    card ``first-try``. Follows the paper's algorithm and thresholds. Its classifiers are fine-tuned 1.7B models with
    labels by a 120B one; here they are small gates on the reasoner's own states, with labels by the regular
    expressions and the task's verifier. Reconstruction: how the gates are trained.

    Attributes:
        tries: candidate lines to wait for; 0 never stops.
        gates: path of what ``thrifty tune first-try`` wrote.
        reflective_tries: candidate lines to wait for where the controller expects a reflection to help.
        theta_c: probability of a candidate above which a line counts; -1 for the calibrated one.
        theta_q: probability that reflection helps above which a question gets ``reflective_tries``; 1 for never
            (CAD only), -1 for the calibrated one.
    """

    slug: ClassVar[str] = "first-try"
    tries: int = TRIES[0]
    gates: str = ""
    reflective_tries: int = TRIES[1]
    theta_c: float = THETA_C
    theta_q: float = THETA_Q

    def __post_init__(self) -> None:
        if self.tries < 0 or self.reflective_tries < 0:
            raise ThriftyError("first-try: tries and reflective_tries must be at least 0")
        for name in ("theta_c", "theta_q"):
            if not (0 <= getattr(self, name) <= 1 or getattr(self, name) == -1):
                raise ThriftyError(f"first-try: {name} must be between 0 and 1, or -1 for the calibrated one")

    @functools.cached_property
    def artefact(self) -> Artefact:
        """What the tuning wrote."""
        return Artefact.load(self.gates, self.slug)

    @property
    def thresholds(self) -> tuple[float, float]:
        """theta_C and theta_Q as they are used."""
        calibrated = self.artefact.values
        theta_c = calibrated["theta_c"] if self.theta_c == -1 else self.theta_c
        return theta_c, calibrated.get("theta_q", 1.0) if self.theta_q == -1 else self.theta_q

    def check(self, model: Model) -> None:
        super().check(model)
        if self.gates:
            model.require(Need.HIDDEN, self.spec)
            assert isinstance(model, TorchModel)
            self.artefact.require(model)

    def over_text(self) -> TextSteering | None:
        def watch() -> Callable[[str], bool]:
            seen = _Seen(self.tries)

            def stops(line: str) -> bool:
                seen.count += extract_candidates(line) is not None
                return seen.count == seen.tries

            return stops

        return None if self.gates else TextSteering(watch=watch if self.tries else None)

    def controllers(self, model: TorchModel) -> list[Controller]:
        if not self.tries:
            return []
        return [_StopByGates(self, model) if self.gates else _StopAtCandidate(self.tries)]

    @classmethod
    def tune(cls, tuning: Tuning) -> Artefact:
        """Train both gates on traces of the model itself; the options are those of `Teaching`."""
        options = tuning.read(Teaching)
        problems = tuning.problems()
        recorder = _Recorder(tuning.layer(options.layer))
        solved = tuning.solve(Vanilla(), problems, options.samples, [recorder], "traces")
        pages = [
            _annotate(recorder.pages[problem.id, trace.sample], index, trace, problem, tuning)
            for index, (problem, its_traces) in enumerate(zip(problems, solved, strict=True))
            for trace in its_traces
        ]
        mended = {p.problem for p in pages if p.transitions.false_true}
        parts = divide([i in mended for i in range(len(problems))], tuning.settings.seed)
        training = Training(width=options.width, balanced=True, seed=tuning.settings.seed)
        lines = [_Example(p.problem, line.state, line.candidate is not None) for p in pages for line in p.lines]
        gates, values, report = {}, {}, {}
        gates["candidate"], values["theta_c"], report["lines"] = _train(
            "candidate", lines, parts, recorder.layer, training, "f1", THETA_C
        )
        if options.qrc:
            questions = [_Example(p.problem, p.prompt, p.transitions.false_true > 0) for p in pages]
            gates["reflection"], values["theta_q"], report["questions"] = _train(
                "reflection", questions, parts, recorder.layer, training, "balanced", THETA_Q
            )
        report["reflections"] = _reflections(pages)
        report["held_out"] = _stops([p for p in pages if p.problem in parts[2]], gates, values)
        made_with = tuning.about(**dataclasses.asdict(options))
        return Artefact(cls.slug, identity(tuning.model), made_with, values, report, gates)


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How the gates are trained.

    Attributes:
        samples: traces of each question.
        qrc: also train the question-aware controller; without it every question gets the same number of tries.
        layer: whose states the gates read; -1 for the last.
        width: of the gates' hidden layer; 0 for linear gates.
    """

    samples: int = 1
    qrc: bool = True
    layer: int = -1
    width: int = 256

    def __post_init__(self) -> None:
        if self.samples < 1 or self.width < 0:
            raise ThriftyError("first-try: samples must be at least 1, width at least 0")


@dataclass
class _Line:
    """A line of thinking: the state at its end, the candidate that it states, and the thinking tokens so far."""

    state: Tensor
    candidate: str | None
    tokens: int
    correct: bool = False


@dataclass
class _Page:
    """A trace as the gates see it."""

    prompt: Tensor
    lines: list[_Line] = field(default_factory=list)
    problem: int = -1
    correct: bool = False
    thinking: int = 0

    @property
    def stated(self) -> list[_Line]:
        """The lines that state a candidate."""
        return [line for line in self.lines if line.candidate is not None]

    @property
    def transitions(self) -> Transitions:
        """From each candidate to the next."""
        return analyse_transitions([str(line.candidate) for line in self.stated], [x.correct for x in self.stated])


class _Recorder(Controller):
    """Write down the page of every row."""

    def __init__(self, layer: int) -> None:
        self.layer, self.taps = layer, (layer,)
        self.pages: dict[tuple[str, int], _Page] = {}

    def see_hidden(self, rows: Sequence[Row], hidden: Mapping[int, Tensor]) -> None:
        for i, row in enumerate(rows):
            key = row.job.problem.id, row.job.sample
            if key not in self.pages:
                self.pages[key] = _Page(hidden[self.layer][i].float().cpu())
            elif _completes_a_thought(row):
                candidate = extract_candidates(row.line_text())
                self.pages[key].lines.append(_Line(hidden[self.layer][i].float().cpu(), candidate, row.thinking_tokens))


def _annotate(page: _Page, index: int, trace: Trace, problem: Problem, tuning: Tuning) -> _Page:
    page.problem, page.correct, page.thinking = index, bool(trace.correct), trace.usage.thinking
    for line in page.stated:
        line.correct = tuning.task.score(problem, line.candidate) >= 1.0
    return page


_REMEDIES = {
    "candidate": "tune on more problems, or on a task whose answers the expressions can read",
    "reflection": "tune on more or harder problems, or without the controller, as 'first-try(qrc=false)'",
}


@dataclass(frozen=True)
class _Example:
    problem: int
    state: Tensor
    positive: bool


def _train(
    name: Literal["candidate", "reflection"],
    examples: Sequence[_Example],
    parts: tuple[list[int], list[int], list[int]],
    layer: int,
    training: Training,
    criterion: Literal["balanced", "f1"],
    default: float,
) -> tuple[Gate, float, dict[str, Any]]:
    """Train one gate, problems divided into parts; return it, its calibrated threshold and a report."""
    positives = sum(e.positive for e in examples)
    counts = {name: positives, f"no {name}": len(examples) - positives}
    if not all(counts.values()):
        raise ThriftyError(
            f"first-try: {positives} of {len(examples)} examples are labelled {name!r}, and a gate needs both kinds: "
            f"{_REMEDIES[name]}"
        )
    pairs = []
    for part in map(set, parts):
        mine = [e for e in examples if e.problem in part]
        states = torch.stack([e.state for e in mine]) if mine else torch.zeros(0, len(examples[0].state))
        pairs.append((states, torch.tensor([int(e.positive) for e in mine], dtype=torch.int64)))
    (train, train_labels), (checked, checked_labels), (rest, rest_labels) = pairs
    gate = fit_gate(train, train_labels, checked, checked_labels, (f"no {name}", name), layer, training)
    found = calibrate_threshold(gate.probabilities(checked)[:, 1], checked_labels == 1, criterion)
    threshold = default if found is None else round(found[0], 6)
    report = {
        "labels": counts,
        "warning": rare_classes(counts),
        "calibrated_threshold": threshold,
        "on_held_out": evaluate(gate, rest, rest_labels),
    }
    return gate, threshold, report


def _reflections(pages: Sequence[_Page]) -> dict[str, float | None]:
    """Tell what happens behind the first candidate: the card's statistics over all traces."""
    total = sum((page.transitions for page in pages), Transitions())
    first = [page.stated[0] for page in pages if page.stated]
    thinking = sum(page.thinking for page in pages)
    behind = sum(page.thinking - page.stated[0].tokens for page in pages if page.stated)

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {
        "accuracy": rounded(sum(page.correct for page in pages) / len(pages)),
        "accuracy_of_first_candidate": rounded(sum(x.correct for x in first) / len(first)) if first else None,
        "thinking_behind_first_candidate": rounded(behind / thinking) if thinking else None,
        "confirmatory": rounded(total.confirmatory),
        "corrective": rounded(total.corrective),
        "p_correct": rounded(total.p_correct),
    }


def _stops(pages: Sequence[_Page], gates: Mapping[str, Gate], values: Mapping[str, float]) -> dict[str, Any]:
    """Tell where the gates would stop held-out traces, and how often a right candidate stands there."""
    tries = {"without stopping": [0] * len(pages), "cad only": [TRIES[0]] * len(pages)}
    if "reflection" in gates and pages:
        scores = gates["reflection"].probabilities(torch.stack([page.prompt for page in pages]))[:, 1].tolist()
        tries["cad and qrc"] = [TRIES[1] if score > values["theta_q"] else TRIES[0] for score in scores]
    report = {}
    for name, wanted in tries.items():
        right = thinking = 0
        for page, count in zip(pages, wanted, strict=True):
            states = [line.state for line in page.lines]
            scores = gates["candidate"].probabilities(torch.stack(states))[:, 1].tolist() if states else []
            stop = stop_line(scores, values["theta_c"], count) if count else None
            right += page.correct if stop is None else page.lines[stop - 1].correct
            thinking += page.thinking if stop is None else page.lines[stop - 1].tokens
        n = max(1, len(pages))
        report[name] = {"thinking_tokens": round(thinking / n, 1), "right_answers": round(right / n, 4)}
    return report
