"""Metacognitive Reuse: a handbook of behaviors, distilled from the model's own traces and handed back to it."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from thrifty.catalogue import Need
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.flow import Call, Flow, Role, conclude
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.shared import handbook as books
from thrifty.methods.shared.handbook import Behavior, Handbook, Retrieved, Retriever
from thrifty.methods.shared.strategist import (
    OWN,
    TEMPLATE,
    Curation,
    extract,
    shortened,
    solution_of,
    strategist_model,
    topic_of,
)
from thrifty.methods.tuning import Tuning
from thrifty.models.base import Job, Model
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Message, Trace, Usage

MODES = ("auto", "bci", "self-improve", "critique")
RETRIEVALS = ("topic", "embedding")
LAYOUTS = ("full", "appended")

BCI_PROMPT = """Below is a list of behaviors with short instructions, then a problem. Solve it step by step; whenever \
one of the behaviors applies, use it and mention its name.

Behaviors:
{behaviors}

Problem:
{question}"""
APPENDED_PROMPT = "{question}\n\nBehaviors:\n{behaviors}"
CRITIQUE_PROMPT = """{question}

Here is a solution:

{solution}

Criticise it: find its mistakes and what is needlessly long. Then solve the problem again, revised, and give the final \
answer."""


@dataclass(frozen=True, kw_only=True)
class MetacognitiveReuse(FlowMethod):
    """Put behaviors, short notes on how to reason, into the prompt, instead of deriving them anew in every trace.

    - ``bci``, behavior-conditioned inference: the behaviors of a handbook that fit the question. Without any, the
      prompt is the plain one. The handbook is made by ``thrifty tune metacognitive-reuse``, whose report tells what
      that cost; reading its behaviors once for their vectors is charged to no problem.
    - ``self-improve``: the model solves, a strategist extracts behaviors from that very trace, the model solves again
      with them. An instruction that holds the first answer is left out; without any behavior the first trace stands.
      All calls are in the account, and both solutions in its output tokens.
    - ``critique``, the paper's baseline: the second round criticises and revises the first solution instead.

    A question from which a behavior was made never gets it from a handbook. Behaviors that don't fit the window are cut
    by rank. ``events["metacognitive-reuse"]`` tells which behaviors were given to the response and which it mentions;
    ``precision`` is the share of the mentioned names that were given. The account tells what was read, the prompt, from
    what was written, which is the paper's axis.

    Source: Metacognitive Reuse: Turning Recurring LLM Reasoning Into Concise Behaviors, arXiv 2509.13237;
    card ``metacognitive-reuse``. Follows the paper (there is no release), in prompts of our own wording; the solution
    prompt is the question itself. Reconstruction: of duplicate names the first instruction stays; behaviors of a topic
    are ranked by similarity, so that the cut is by rank. Whether the paper's self-improvement has behaviors per
    question or pooled is not clear. Per question is the default; pooling over the questions of a run would make a
    result depend on which others are run, so ``pool`` adds those of a handbook that the same model made.

    Attributes:
        handbook: path of what ``thrifty tune metacognitive-reuse`` wrote, for this or another model.
        mode: see above; ``auto`` is ``bci`` where a handbook is given, else ``self-improve``.
        retrieval: ``topic``, all behaviors of the question's topic, and ``embedding`` where it has none that the
            handbook knows; ``embedding``, the ``k`` most similar.
        k: behaviors retrieved by embedding.
        layout: of the prompt: ``full``, instructions, behaviors and question; ``appended``, ours: the question, and
            behind it the behaviors with nothing said about them, which costs fewer tokens and leaves the question
            where a small model is used to it.
        topic: key of the problem's metadata that tells its topic.
        embedder: folder of a sentence model, charged as a helper; empty for character n-grams.
        budget: tokens that the behaviors may add to the prompt; 0 for what ``max_tokens``, or half of the window if
            that is less, leaves of it. For a model on a server a token is counted as four characters, and it has no
            window.
        rounds: of self-improvement or critique; 0 answers plainly.
        pool: in self-improvement, add what the handbook has for the question.
        strategist: who extracts in self-improvement: ``own`` for the model itself, or another model.
        strategist_tokens: limit on each reply of the strategist.
    """

    slug: ClassVar[str] = "metacognitive-reuse"
    needs: ClassVar[Need] = Need.TEXT
    thinks: ClassVar[bool] = False
    handbook: str = ""
    mode: str = "auto"
    retrieval: str = "topic"
    k: int = 40
    layout: str = "full"
    topic: str = "family"
    embedder: str = ""
    budget: int = 0
    rounds: int = 1
    pool: bool = False
    strategist: str = OWN
    strategist_tokens: int = 512

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("retrieval", RETRIEVALS), ("layout", LAYOUTS)):
            if getattr(self, name) not in known:
                raise UnknownName(f"{name} of metacognitive-reuse", getattr(self, name), known)
        if min(self.k, self.strategist_tokens) < 1 or min(self.rounds, self.budget) < 0:
            raise ThriftyError(
                "metacognitive-reuse: k and strategist_tokens must be at least 1, rounds and budget at least 0"
            )
        if not self.handbook and (self.mode == "bci" or self.pool):
            raise ThriftyError(
                "metacognitive-reuse: mode=bci and pool need a handbook: `thrifty tune metacognitive-reuse "
                "--out FILE`, then metacognitive-reuse(handbook=FILE)"
            )
        if self.pool and self.mode in ("bci", "critique"):
            raise ThriftyError("metacognitive-reuse: pool is for mode=self-improve; leave it out")
        if self.strategist == TEMPLATE:
            raise ThriftyError(
                "metacognitive-reuse: the template strategist finds what recurs over many questions: it makes "
                f"handbooks, as `thrifty tune 'metacognitive-reuse(strategist={TEMPLATE})'`"
            )

    @property
    def playing(self) -> str:
        """The mode, decided."""
        if self.mode != "auto":
            return self.mode
        return "bci" if self.handbook and not self.pool else "self-improve"

    @functools.cached_property
    def retriever(self) -> Retriever:
        """Over the handbook."""
        values = Artefact.load(self.handbook, self.slug).values
        book = Handbook.of(values.get("behaviors", ()))
        return Retriever(book, self.retrieval, self.k, books.embedder(self.embedder))

    def check(self, model: Model) -> None:
        super().check(model)
        if self.playing == "bci" or self.pool:
            self.retriever  # noqa: B018  # read now, so that a handbook or embedder that is missing is told at once
        if self.playing == "self-improve":
            strategist_model(self.strategist, model)

    def flow(self, stage: Stage, job: Job) -> Flow:
        if self.playing == "bci":
            found = self._retrieve(job)
            call, given = self._call(stage, job, found.behaviors)
            (row,) = yield [call]
            told = {"retrieval": found.by, "cut": len(found.behaviors) - len(given)}
            return self._conclude(stage, row, given, [], told, found.tokens)
        (row,) = yield [stage.call(stage.render(job), messages=job.problem.messages)]
        return (yield from (self._critique if self.playing == "critique" else self._improve)(stage, job, row))

    def _critique(self, stage: Stage, job: Job, row: Row) -> Flow:
        *before, question = job.problem.messages
        others: list[tuple[Row, Role]] = []

        def asking(solution: str) -> list[Message]:
            content = CRITIQUE_PROMPT.format(question=question["content"], solution=solution)
            return [*before, {**question, "content": content}]

        for _ in range(self.rounds):
            messages = shortened(stage.model, asking, solution_of(stage.model, row), _window(stage))
            if messages is None:
                return self._conclude(stage, row, [], others, {"stopped": "window"})
            others.append((row, "sample"))
            (row,) = yield [stage.call(stage.render(job, messages), messages=messages)]
        return self._conclude(stage, row, [], others, {})

    def _improve(self, stage: Stage, job: Job, row: Row) -> Flow:
        own, given, told = Handbook(), list[Behavior](), Counter[str]()
        others: list[tuple[Row, Role]] = []
        pooled = self._retrieve(job) if self.pool and self.rounds else Retrieved([], "none", 0)
        for _ in range(self.rounds):
            strategist = strategist_model(self.strategist, stage.model)
            extracted = yield from extract(stage, job, row, strategist, self.strategist_tokens)
            others.extend(extracted.rows)
            told += extracted.counts
            for name, instruction in extracted.behaviors:
                own.add(Behavior(name, instruction))
            call, chosen = self._call(stage, job, Handbook([*own.behaviors, *pooled.behaviors]).behaviors)
            if not chosen:  # the prompt would be the plain one, which has been answered
                break
            others.append((row, "sample"))
            given = chosen
            (row,) = yield [call]
        return self._conclude(stage, row, given, others, dict(told), pooled.tokens)

    def _retrieve(self, job: Job) -> Retrieved:
        return self.retriever.retrieve(job.problem.question, topic_of(job.problem, self.topic))

    def _call(self, stage: Stage, job: Job, behaviors: Sequence[Behavior]) -> tuple[Call, list[Behavior]]:
        """Return a call with the first behaviors that fit, and these; the plain call if none does."""
        *before, question = job.problem.messages

        def messages(count: int) -> Sequence[Message]:
            content = bci_prompt(behaviors[:count], question["content"], self.layout)
            return [*before, {**question, "content": content}] if count else job.problem.messages

        plain, most = _length(stage, job, job.problem.messages), _window(stage)

        def fits(count: int) -> bool:
            length = _length(stage, job, messages(count))
            return (most is None or length <= most) and (not self.budget or length - plain <= self.budget)

        count = books.most_that_fit(len(behaviors), fits)
        call = stage.call(stage.render(job, messages(count)), messages=messages(count))
        return call, list(behaviors[:count])

    def _conclude(
        self,
        stage: Stage,
        row: Row,
        given: Sequence[Behavior],
        others: Sequence[tuple[Row, Role]],
        told: Mapping[str, object],
        read: int = 0,
    ) -> Trace:
        names, mentioned = [behavior.name for behavior in given], books.cited(row.text())
        solutions = [*(other for other, role in others if role == "sample"), row]
        about = {
            "mode": self.playing,
            **told,
            "answers": [solution.trace("").answer for solution in solutions],
            "behaviors": names,
            "cited": mentioned,
            "precision": books.precision(mentioned, names),
        }
        trace = conclude(row, stage.method, others, {self.slug: about})
        if read:
            parameters = self.retriever.embedder.parameters
            trace.usage = trace.usage + Usage(helper=read, flops=2.0 * parameters * read)
        return trace

    @classmethod
    def tune(cls, tuning: Tuning) -> Artefact:
        """Make a handbook from the model's traces; the options are those of `Curation`."""
        options = tuning.read(Curation)
        problems = tuning.problems()
        options.check(tuning.model)
        solved = tuning.solve(options, problems, options.samples, what="curation")
        book, report = options.collect([(p, t) for p, its in zip(problems, solved, strict=True) for t in its])
        if not len(book):
            raise ThriftyError(
                f"no behavior came of {len(problems)} problems ({', '.join(f'{n} {k}' for k, n in report.items())}): "
                "give a strategist that writes JSON, as strategist=MODEL, or tune on more problems"
            )
        report["merged"] = book.merge(books.embedder(options.embedder), options.merge)
        topics = Counter(topic for behavior in book.behaviors for topic in behavior.topics)
        traces = [trace for its in solved for trace in its]
        aside = [trace.usage.probe + trace.usage.helper for trace in traces]
        report |= {
            "behaviors": len(book),
            "topics": dict(topics),
            "tokens_for_solutions": sum(t.usage.total for t in traces) - sum(aside),
            "tokens_for_extraction": sum(aside),
        }
        made_with = tuning.about(**dataclasses.asdict(options))
        return Artefact(cls.slug, identity(tuning.model), made_with, {"behaviors": book.values()}, report)


def bci_prompt(behaviors: Sequence[Behavior], question: str, layout: str = "full") -> str:
    """Return the prompt that gives behaviors with a question; without any it is the question.

    Args:
        behaviors: to be given.
        question: its text.
        layout: one of `LAYOUTS`.
    """
    if not behaviors:
        return question
    template = BCI_PROMPT if layout == "full" else APPENDED_PROMPT
    return template.format(behaviors="\n".join(f"- {b.line}" for b in behaviors), question=question)


def _window(stage: Stage) -> int | None:
    """Return the tokens that a prompt may have, None where the window is not known."""
    model: Model = stage.model
    if not isinstance(model, TorchModel):
        return None
    return model.context_length - min(stage.settings.max_tokens, model.context_length // 2)


def _length(stage: Stage, job: Job, messages: Sequence[Message]) -> int:
    """Return the tokens of a prompt, for a model on a server a quarter of its characters."""
    model: Model = stage.model
    if isinstance(model, TorchModel):
        return len(model.encode_prompt(stage.render(job, messages)))
    return sum(len(message["content"]) for message in messages) // 4
