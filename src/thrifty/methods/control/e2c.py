"""E²C: sample several short plans, choose, and spend the long execution on the chosen ones only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.flow import Call, Flow, Role, conclude
from thrifty.decoding.likelihood import Likelihood
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import uniforms
from thrifty.errors import ThriftyError
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.shared.clusters import k_means, ngram_vectors, sentence_model
from thrifty.models.base import Job, Model, Settings
from thrifty.models.formats import in_format, knows_formats
from thrifty.models.torch import TorchModel
from thrifty.traces.plans import EXPLORATION, similarity, states_answer
from thrifty.traces.selection import argbest, vote
from thrifty.traces.trace import Message, Usage

Result = TypeVar("Result")
Steps = Generator[Sequence[Call], list[Row], Result]

STYLES = ("auto", "format", "tags", "prompt")
SELECTORS = ("cluster", "judge", "likelihood", "all", "random")
PLAN_PROMPT = (
    "{question}\n\nDo not solve this yet. Write the plan of a solution: a numbered list of a few short steps, one line "
    "each, without calculations and without the answer."
)
EXECUTION_PROMPT = "{question}\n\nFollow this plan strictly, step by step, and give the final answer:\n\n{plan}"
JUDGE_PROMPT = (
    "{question}\n\nHere are several plans for solving this.\n\n{plans}\n\nWhich of them is most likely to lead to the "
    "right answer? Copy that plan word for word and write nothing else."
)
JUDGE_ROOM = 16
"""Tokens that a judge may write beyond the longest plan."""
STREAM = 2
"""The random choice of a plan draws from a stream of its own."""


@dataclass(frozen=True)
class Plan:
    """A sampled plan.

    Attributes:
        row: that wrote it.
        text: without the text that ends it.
        likelihood: mean log-probability of its tokens in nats, under the model's raw distribution; None for no token.
        count: samples that are this plan.
    """

    row: Row
    text: str
    likelihood: float | None
    count: int = 1


class _ReadOnly(Controller):
    """Stop before the first token: the prompt is read once, and every plan goes on from there."""

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.stop("read")


class _StopAtEnd(Controller):
    """Stop where a plan ends."""

    def __init__(self, end: str) -> None:
        self.end = end

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            tail = max(row.inherited, len(row.ids) - len(self.end) - 1)
            if self.end and self.end in row.text(tail):
                row.stop("plan")


@dataclass(frozen=True, kw_only=True)
class E2C(FlowMethod):
    """Explore plans cheaply, choose among them, execute the choice and vote.

    K plans are sampled with a stop at their end. Those that are empty, unfinished or give the answer away are left out,
    equal ones are one plan. The chosen plans are executed and their answers voted on, each with its plan's weight:

    - ``cluster``: k-means over the plans; the one nearest to each centroid, weighing as much as its cluster.
    - ``judge``: the model sees all plans and copies the best; the plan with the highest LCS ratio to the copy.
    - ``likelihood``: the plan whose tokens have the highest mean log-probability (no selector of the paper).
    - ``all``: self-consistency over plans; a plan that was sampled twice is executed once and weighs 2.
    - ``random``: one of the samples.

    If no plan is usable the model answers plainly.

    Source: Explore-Execute Chain: Towards an Efficient Structured Reasoning Paradigm, arXiv 2509.23946; card ``e2c``.
    Follows the release's selectors. Reconstruction: the number of clusters, and plans by prompt for models that were
    not trained on the format. The ReAct-style loop of the paper's third version is NOT FOUND and not here.

    Attributes:
        plans: K, plans to sample; the paper uses 4 to 32. 0 answers plainly.
        select: the selector.
        style: how plans are asked for: ``format``, by the embedded models' system prompt; ``tags``, as a model trained
            by the paper writes them, after ``<EXPLORATION>``; ``prompt``, in a call of its own, whose text is all that
            the execution's prompt takes over. The first two go on from the plan's cache. ``auto`` for what the model's
            template and vocabulary speak for.
        end: text that ends a plan; empty for the style's own: a blank line, ``</EXPLORATION>``, or the reply's end.
        plan_tokens: limit on a plan, and at most half of what the response may have.
        plan_temperature: of the plans.
        temperature: of the executions; 0 is greedy.
        clusters: C; 0 for a quarter of K, at least 1.
        embedder: folder of a sentence model that embeds plans for ``cluster``, charged as a helper; empty for counts of
            character n-grams.
    """

    slug: ClassVar[str] = "e2c"
    needs: ClassVar[Need] = Need.SAMPLING
    thinks: ClassVar[bool] = False
    plans: int = 4
    select: str = "cluster"
    style: str = "auto"
    end: str = ""
    plan_tokens: int = 256
    plan_temperature: float = 1.0
    temperature: float = 0.0
    clusters: int = 0
    embedder: str = ""

    def __post_init__(self) -> None:
        if self.select not in SELECTORS or self.style not in STYLES:
            raise ThriftyError(f"e2c: select is one of {', '.join(SELECTORS)}; style one of {', '.join(STYLES)}")
        if min(self.plans, self.clusters, self.plan_temperature, self.temperature) < 0 or self.plan_tokens < 1:
            raise ThriftyError("e2c: plans, clusters and temperatures must be at least 0, plan_tokens at least 1")
        if self.embedder and self.select != "cluster":
            raise ThriftyError("e2c: embedder is for select=cluster")

    def check(self, model: Model) -> None:
        super().check(model)
        if self.embedder:
            sentence_model(self.embedder)

    def flow(self, stage: Stage, job: Job) -> Flow:
        if self.plans == 0:
            (row,) = yield [stage.call(stage.render(job))]
            return conclude(row, stage.method)
        style = self.style_for(stage.model) if self.style == "auto" else self.style
        root, sampled = yield from self.explore(stage, job, style)
        plans, refused = self.usable(root, sampled, style)
        events: dict[str, object] = {"style": style, "plans": [[plan.text, plan.count] for plan in plans], **refused}
        if not plans:
            (row,) = yield [stage.call(stage.render(job), stream=0)]
            explored: list[tuple[Row, Role]] = [(root, "probe"), *((plan.row, "probe") for plan in sampled)]
            return conclude(row, stage.method, explored, {"e2c": events})
        chosen, judged, helper = yield from self._select(stage, job, plans, root)
        rows = yield [self._execution(stage, job, style, plan) for plan, _ in chosen]
        answers = [row.trace(stage.method).answer for row in rows]
        events["chosen"] = [[plan.text, weight, answer] for (plan, weight), answer in zip(chosen, answers, strict=True)]
        row = rows.pop(vote(answers, [weight for _, weight in chosen]) or 0)
        # an execution that goes on from its plan, and that from the prompt, is one response with them
        continued = [] if style == "prompt" else [root, *(plan.row for plan, _ in chosen)]
        parts = {id(part) for part in continued}
        explored = [(part, "sample" if id(part) in parts else "probe") for part in [root, *(p.row for p in sampled)]]
        others: list[tuple[Row, Role]] = [(other, "sample") for other in rows] + [(other, "probe") for other in judged]
        trace = conclude(row, stage.method, explored + others, {"e2c": events})
        trace.usage = trace.usage + helper
        return trace

    @staticmethod
    def style_for(model: TorchModel) -> str:
        """Return the style that a model's vocabulary and chat template speak for."""
        if len(model.encode(EXPLORATION[0])) == 1:
            return "tags"
        return "format" if knows_formats(model.template) else "prompt"

    def explore(self, stage: Stage, job: Job, style: str) -> Steps[tuple[Row, list[Plan]]]:
        """Return the row that read the prompt, and the K plans that were sampled from there."""
        end = self.end or {"format": "\n\n", "tags": EXPLORATION[1], "prompt": ""}[style]
        if style == "prompt":
            prompt, prefix = without_thinking(stage.model, asking(job, PLAN_PROMPT))
        else:
            messages = in_format(job.problem.messages, "plan") if style == "format" else None
            prompt, prefix = stage.render(job, messages), f"{EXPLORATION[0]}\n" if style == "tags" else ""
        limit = max(1, min(self.plan_tokens, stage.settings.max_tokens // 2))
        settings = _aside(stage.settings, limit, self.plan_temperature)
        (root,) = yield [Call(prompt, [_ReadOnly()], settings, prefix=prefix, keep=True)]
        likelihood, keep = Likelihood(), style != "prompt"
        controllers = [likelihood, _StopAtEnd(end)]
        rows = yield [Call("", controllers, settings, parent=root, keep=keep) for _ in range(self.plans)]
        return root, [Plan(row, _plan_text(row, end), likelihood.mean(row)) for row in rows]

    def usable(self, root: Row, sampled: Sequence[Plan], style: str) -> tuple[list[Plan], dict[str, int]]:
        """Return the distinct plans that can be executed, and how many samples cannot, by reason."""
        finished = ("plan", "eos") if style == "prompt" and not self.end else ("plan",)
        refused: Counter[str] = Counter()
        found: dict[str, list[Plan]] = {}
        for plan in sampled:
            if plan.row.stopped not in finished or plan.row.phase != root.phase:
                refused["unfinished"] += 1
            elif not plan.text:
                refused["empty"] += 1
            elif states_answer(plan.text):
                refused["leaking"] += 1
            else:
                found.setdefault(" ".join(plan.text.split()).casefold(), []).append(plan)
        return [replace(same[0], count=len(same)) for same in found.values()], dict(refused)

    def _select(
        self, stage: Stage, job: Job, plans: list[Plan], root: Row
    ) -> Steps[tuple[list[tuple[Plan, int]], list[Row], Usage]]:
        """Return the plans to execute with their weights, the judge's rows, and what another model spent."""
        if self.select == "all" or len(plans) == 1:
            return [(plan, plan.count) for plan in plans], [], Usage()
        if self.select == "judge":
            row = yield from self._judge(stage, job, sorted(plans, key=lambda plan: -plan.count))
            copy = row.trace(stage.method).answer_text.strip()
            best = argbest([similarity(plan.text, copy) for plan in plans])
            return [(plans[best or 0], 1)], [row], Usage()
        if self.select == "likelihood":
            return [(plans[argbest([plan.likelihood for plan in plans]) or 0], 1)], [], Usage()
        samples = [plan for plan in plans for _ in range(plan.count)]
        if self.select == "random":
            draw = uniforms(np.array([root.key], dtype=np.uint64), np.zeros(1, dtype=np.uint64), STREAM)[0]
            return [(samples[int(draw * len(samples))], 1)], [], Usage()
        vectors, spent = self._embed([plan.text for plan in samples])
        groups = k_means(vectors, self.clusters or max(1, self.plans // 4))
        return [(samples[group.centre], len(group.members)) for group in groups], [], spent

    def _embed(self, texts: Sequence[str]) -> tuple[Tensor, Usage]:
        if not self.embedder:
            return ngram_vectors(texts), Usage()
        encoder = sentence_model(self.embedder)
        vectors, tokens = encoder.vectors(texts)
        return vectors, Usage(helper=tokens, flops=2.0 * encoder.parameters * tokens)

    def _judge(self, stage: Stage, job: Job, plans: Sequence[Plan]) -> Steps[Row]:
        for count in range(len(plans), 0, -1):  # the most frequent plans come first; those beyond the context go unseen
            listed = "\n\n".join(f"Plan {i}:\n{plan.text}" for i, plan in enumerate(plans[:count], 1))
            prompt, prefix = without_thinking(stage.model, asking(job, JUDGE_PROMPT, plans=listed))
            room = JUDGE_ROOM + max(len(plan.row.ids) for plan in plans[:count])
            if len(stage.model.encode_prompt(prompt)) + room < stage.model.context_length:
                break
        (row,) = yield [Call(prompt, settings=_aside(stage.settings, room, 0.0), prefix=prefix)]
        return row

    def _execution(self, stage: Stage, job: Job, style: str, plan: Plan) -> Call:
        settings = stage.settings.with_(temperature=self.temperature)
        if style == "prompt":
            prompt = stage.render(job, asking(job, EXECUTION_PROMPT, plan=plan.text))
            return stage.call(prompt, settings=settings)
        return stage.call(parent=plan.row, settings=settings)


def asking(job: Job, template: str, **values: str) -> list[Message]:
    """Return a job's messages, the last one rewritten by a template with ``{question}`` and other values."""
    content = template.format(question=job.problem.question, **values)
    return [*job.problem.messages[:-1], {**job.problem.messages[-1], "content": content}]


def without_thinking(model: TorchModel, messages: Sequence[Message]) -> tuple[str, str]:
    """Return a prompt and how the response must begin for the model to answer at once, as far as it can be had."""
    prompt = model.render(messages, enable_thinking=False)
    thinking = model.tracker.start(prompt).phase == "thinking"
    return prompt, "\n" + model.think.force_close if thinking else ""


def _aside(settings: Settings, max_tokens: int, temperature: float) -> Settings:
    """Return the settings of a call that needs no room for an answer."""
    return settings.with_(
        max_tokens=max_tokens, temperature=temperature, thinking_budget=None, answer_reserve=0, stop=()
    )


def _plan_text(row: Row, end: str) -> str:
    if not end:
        return row.trace("").answer_text.strip()
    return row.text(row.inherited).partition(end)[0].strip()
