"""Strategists: have a model's solutions turned into behaviors, for one question or for a whole handbook."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from thrifty.catalogue import Need
from thrifty.decoding.flow import Call, Flow, Role, conclude
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.shared import handbook as books
from thrifty.methods.shared.handbook import Behavior, Handbook
from thrifty.methods.shared.helpers import ask, helper_model, helper_settings, reply_of, role_of
from thrifty.models.base import Job, Model
from thrifty.models.formats import in_format
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Message, Problem, Trace

OWN, TEMPLATE = "own", "template"
M = TypeVar("M", bound=Model)
MARGIN = 16
"""Tokens by which a text that was cut may grow when it is tokenised anew."""

REFLECTION_PROMPT = """A behavior is a note or skill for reasoning: a strategy, trick, technique or general rule. It \
is not the solution of a problem, but it helps to solve it.

Problem:
{question}

Solution:
{solution}

Answer: {answer}

Reflect on this solution. Is its logic sound, and is the answer correct? Which behaviors would have made it shorter? \
List new behaviors, general enough for other problems of this kind."""
BEHAVIOR_PROMPT = """Problem:
{question}

Solution:
{solution}

Reflection on the solution:
{reflection}

Write the behaviors that this reflection suggests as one JSON object. A key is a name that begins with behavior_, in \
small letters; its value is one sentence that says what to do, without the numbers of this problem. Write only JSON, \
as {{"behavior_angle_sum": "Subtract the known angles of a triangle from 180 degrees to get the missing one."}}"""


@dataclass(frozen=True)
class Extracted:
    """What a strategist made of one solution.

    Attributes:
        behaviors: pairs of name and instruction.
        rows: the calls, with their roles.
        counts: replies without JSON (``malformed``), behaviors ``dropped`` or ``leaking``.
    """

    behaviors: list[tuple[str, str]]
    rows: list[tuple[Row, Role]]
    counts: Counter[str]


@dataclass(frozen=True, kw_only=True)
class Curation(FlowMethod):
    """How a handbook is made: the model solves, a strategist reflects on the trace and writes behaviors as JSON.

    The ``template`` strategist is ours, not the paper's, for models too small to reflect: it asks the model, by the
    embedded models' system prompt, to plan first, and takes the lines of its plans that recur in right traces of
    several questions of a topic, numbers replaced by "N".

    Attributes:
        strategist: ``own`` for the model itself, ``template``, or the name of another model.
        strategist_tokens: limit on each of the strategist's replies.
        samples: traces of each question.
        correct: only behaviors from traces whose answer is right; the paper leaves that to the reflection.
        recurring: questions in which a line of the template strategist must stand.
        merge: cosine above which two behaviors are one, such as 0.95; 1 for never.
        topic: key of the problems' metadata that tells their topic.
        embedder: folder of the sentence model for ``merge``; empty for character n-grams.
    """

    slug: ClassVar[str] = "metacognitive-reuse-curation"
    needs: ClassVar[Need] = Need.TEXT
    thinks: ClassVar[bool] = False
    strategist: str = OWN
    strategist_tokens: int = 512
    samples: int = 1
    correct: bool = False
    recurring: int = 3
    merge: float = 1.0
    topic: str = "family"
    embedder: str = ""

    def __post_init__(self) -> None:
        if min(self.samples, self.recurring, self.strategist_tokens) < 1 or not 0 < self.merge <= 1:
            raise ThriftyError(
                "tuning 'metacognitive-reuse': samples, recurring and strategist_tokens must be at least 1, "
                "merge above 0 and at most 1"
            )

    def check(self, model: Model) -> None:
        super().check(model)
        books.embedder(self.embedder)
        if self.strategist != TEMPLATE:
            strategist_model(self.strategist, model)

    def flow(self, stage: Stage, job: Job) -> Flow:
        template = self.strategist == TEMPLATE
        messages = in_format(job.problem.messages, "plan") if template else job.problem.messages
        (row,) = yield [stage.call(stage.render(job, messages), messages=messages)]
        if template:
            name = books.behavior_name(topic_of(job.problem, self.topic) or "note")
            notes = [(name, note) for note in books.plan_notes(solution_of(stage.model, row))]
            extracted = Extracted(notes, [], Counter())
        else:
            strategist = strategist_model(self.strategist, stage.model)
            extracted = yield from extract(stage, job, row, strategist, self.strategist_tokens)
        told = {"behaviors": extracted.behaviors, "counts": dict(extracted.counts)}
        return conclude(row, stage.method, extracted.rows, {self.slug: told})

    def collect(self, solved: Sequence[tuple[Problem, Trace]]) -> tuple[Handbook, dict[str, Any]]:
        """Return the handbook that judged traces give, and what became of the behaviors found.

        Args:
            solved: problems with their traces, one for each trace.
        """
        book, counts = Handbook(), Counter[str](traces=len(solved))
        template = self.strategist == TEMPLATE
        found: list[Behavior] = []
        for problem, trace in solved:
            told = trace.events[self.slug]
            counts += told["counts"]
            if not trace.correct and (self.correct or template):
                counts["traces_not_right"] += 1
                continue
            topic = topic_of(problem, self.topic)
            topics, source = (topic,) if topic is not None else (), books.source_of(problem.question)
            for name, instruction in told["behaviors"]:
                if books.leaks(instruction, trace.answer) or books.leaks(instruction, problem.answer):
                    counts["leaking"] += 1
                else:
                    found.append(Behavior(name, instruction, topics, (source,)))
        if template:
            again = books.recurring(found, self.recurring)
            counts["not_recurring"] = len(found) - len(again)
            found = again
        counts["duplicates"] = sum(not book.add(behavior) for behavior in found)
        return book, dict(counts)


def topic_of(problem: Problem, key: str) -> str | None:
    """Return the topic under a key of a problem's metadata, None without one."""
    topic = problem.metadata.get(key)
    return None if topic is None or topic == "" else str(topic)


def solution_of(model: Model, row: Row) -> str:
    """Return a response, thinking and answer, without think markers."""
    text, think = row.trace("").text, getattr(model, "think", None)
    for marker in (think.open, think.close) if think and think.thinks else ():
        text = text.replace(marker, "")
    return text.strip()


def extract(
    stage: Stage, job: Job, row: Row, strategist: TorchModel, max_tokens: int
) -> Generator[Sequence[Call], list[Row], Extracted]:
    """Have a strategist reflect on a solution and write behaviors, those that hold its answer left out.

    Args:
        stage: of the flow.
        job: the question.
        row: the solution.
        strategist: which reflects; in a flow over a model of text, one of text too.
        max_tokens: limit on each of its two replies.
    """
    role, settings = role_of(strategist, stage.model), helper_settings(stage.settings, max_tokens)
    most = strategist.context_length - max_tokens if isinstance(strategist, TorchModel) else None
    answer = row.trace("").answer
    known = {"question": job.problem.question, "answer": answer or "none was given"}
    rows: list[tuple[Row, Role]] = []
    solution = solution_of(stage.model, row)
    for prompt in (REFLECTION_PROMPT, BEHAVIOR_PROMPT):
        form = functools.partial(_form, prompt, known)
        messages = shortened(strategist, form, solution, most)
        if messages is None:
            return Extracted([], rows, Counter(too_long=1))
        # greedy, so that the stream decides nothing but which recording a replayed strategist plays
        (reply,) = yield [replace(ask(strategist, messages, settings), stream=0)]
        rows.append((reply, role))
        known["reflection"] = reply_of(reply)
    parsed = books.parse_behaviors(known["reflection"])
    if parsed is None:
        return Extracted([], rows, Counter(malformed=1))
    kept = [pair for pair in parsed.behaviors if not books.leaks(pair[1], answer)]
    return Extracted(kept, rows, Counter(dropped=parsed.dropped, leaking=len(parsed.behaviors) - len(kept)))


def _form(prompt: str, values: Mapping[str, str], solution: str) -> list[Message]:
    return [{"role": "user", "content": prompt.format(solution=solution, **values)}]


def strategist_model(name: str, main: M) -> M:
    """Return the model that a strategist's name means, the main one for ``own``; see `helper_model`."""
    return helper_model("" if name == OWN else name, main)


def shortened(
    model: Model, messages: Callable[[str], list[Message]], text: str, most: int | None
) -> list[Message] | None:
    """Return messages with a text in them, its middle left out where the prompt would be longer than ``most`` tokens.

    Args:
        model: which reads them.
        messages: puts the text in.
        text: the solution.
        most: tokens, None for no limit.

    Returns:
        None if they are too long even without the text.
    """
    whole = messages(text)
    if most is None or not isinstance(model, TorchModel):
        return whole
    if len(model.encode_prompt(model.render(whole))) <= most:
        return whole
    room = most - len(model.encode_prompt(model.render(messages("")))) - 2 * MARGIN
    if room < 0:
        return None
    ids, half = model.encode(text), room // 2
    return messages(f"{model.texts.text(ids[:half])}\n[...]\n{model.texts.text(ids[len(ids) - half :])}")
