"""Plan-and-Budget: sub-questions with budgets of their own, stated in one prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

from thrifty.catalogue import Need
from thrifty.decoding.flow import Call, Flow, Role, conclude
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.shared.allocation import SCHEDULES, allocate
from thrifty.methods.shared.helpers import ask, helper_model, helper_settings, reply_of, role_of
from thrifty.models.base import Job, Model
from thrifty.models.torch import TorchModel

MODES = ("vanilla", "planned", "global_budget", "planned_global", "planned_local_uniform", "planned_local_weighted")
LEVELS = ("auto", "label", "judged")
HARDEST = 5
MOST_STEPS = 5

LEVEL_PROMPT = """Rate how hard the last question is, from 1 (easy) to 5 (hard). One example of each level:
1: What is 17 + 26?
2: A train covers 150 km in 2.5 hours. How fast is it on average?
3: Solve 2x^2 - 7x + 3 = 0.
4: How many four-digit numbers have digits that add up to 9?
5: For which integers n is n^2 + 19n + 92 a perfect square?

Question: {question}

Reply with the number only."""
STEPS_PROMPT = """You design exams. Split the problem into 2 to 5 high-level sub-questions, in the order in which they
should be settled; it is of level {level} of 5, and the easier a problem, the fewer it needs. Give each a hint of one
line. Do not reason and do not solve anything.

Problem: {question}

Write only lines like these:
1. (sub-question)
Hint: (hint)
2. (sub-question)
Hint: (hint)"""
CREDITS_PROMPT = """A problem worth 100 points was split into sub-questions. Give each a reason (50 words at the most),
a level from 1 to 5 and a whole number of points as its credit. The credits must add up to 100.

Problem: {question}

{steps}

Reply with JSON only, one entry for each sub-question:
{{"subquestions": [{{"reason": "...", "level": 3, "credit": 40}}]}}"""
EXAM_PROMPT = """You sit an exam.

Problem (100 points): {question}
Reference: None.
Level: {level} of 5

Settle these sub-questions in turn:
{steps}

Other methods are allowed.{limit} Put the final answer in \\boxed{{}}."""
PART_LIMIT = "Keep the thinking short and settle this part within {budget} words."
WHOLE_LIMIT = "Use fewer than {budget} tokens."

_STEP = re.compile(
    r"^[ \t*#-]{0,8}\d{1,3}[.)](?P<text>[^\n]*\S[^\n]*)\n\s{0,9}[*-]{0,3}[ \t]?Hint[*]{0,2}:(?P<hint>[^\n]*)",
    re.MULTILINE | re.IGNORECASE,
)
_LEVEL = re.compile(r"(?<![\d.,])[1-5](?![\d]|[.,]\d)")
_JSON = re.compile(r"[{\[]")
_WORDS = {"easy": 1, "medium": 3, "hard": 5}

T = TypeVar("T")


class SubQuestion(NamedTuple):
    """One step of a plan."""

    text: str
    hint: str


DIRECT = [SubQuestion("Directly solve the problem", "None")]
"""The plan where the planner gives none."""


def label_level(metadata: Mapping[str, Any]) -> int | None:
    """Return the level from 1 to 5 with which a data set labels a problem, None if it does not.

    ``Level 4``, ``4`` and ``hard`` are read, under ``level`` or ``difficulty``.

    Args:
        metadata: of the problem.
    """
    for key in ("level", "difficulty"):
        label = str(metadata.get(key, "")).strip().casefold()
        if re.fullmatch(r"(?:level\s*)?[1-5]", label):
            return int(label[-1])
        if label in _WORDS:
            return _WORDS[label]
    return None


def parse_level(text: str) -> int | None:
    """Return the first number from 1 to 5 that stands by itself, None if there is none.

    Args:
        text: a judge's reply.
    """
    match = _LEVEL.search(text)
    return int(match.group()) if match else None


def parse_steps(text: str) -> list[SubQuestion] | None:
    """Return the sub-questions of a planner's reply, `MOST_STEPS` at the most; None if nothing can be read.

    Args:
        text: numbered lines, each followed by a line ``Hint: ...``.
    """
    found = [SubQuestion(m["text"].strip("* "), m["hint"].strip("* ") or "None") for m in _STEP.finditer(text)]
    return found[:MOST_STEPS] or None


def parse_credits(text: str, count: int) -> list[float] | None:
    """Return the credits in the first JSON value that holds usable ones, None if there is none.

    Args:
        text: a planner's reply, with whatever stands around the JSON.
        count: sub-questions; there must be as many credits, none negative, not all zero.
    """
    for found in _json_values(text):
        if isinstance(found, dict):
            lists = [value for value in found.values() if isinstance(value, list)]
            found = found.get("credits") or (lists[0] if lists else list(found.values()))
        items = found if isinstance(found, list) else []
        credits = [item.get("credit") if isinstance(item, dict) else item for item in items]
        numbers = [c for c in credits if isinstance(c, int | float) and not isinstance(c, bool) and 0 <= c <= 1e9]
        if len(numbers) == len(credits) == count and any(numbers):
            return numbers
    return None


def _json_values(text: str) -> Iterator[object]:
    decoder, at = json.JSONDecoder(), 0
    while match := _JSON.search(text, at):
        try:
            value, at = decoder.raw_decode(text, match.start())
            yield value
        except (ValueError, RecursionError):
            at = match.end()


def numbered(steps: Sequence[SubQuestion], parts: Sequence[int] = ()) -> str:
    """Return the sub-questions as lines, each with its budget in words if there are any.

    Args:
        steps: sub-questions ``(n,)``.
        parts: budgets ``(n,)``, or none.
    """
    lines = [f"{k}. {step.text} Hint: {step.hint}" for k, step in enumerate(steps, 1)]
    limits = ["\n" + PART_LIMIT.format(budget=part) for part in parts] or [""] * len(lines)
    return "\n".join(line + limit for line, limit in zip(lines, limits, strict=True))


def located(text: str, count: int) -> list[str] | None:
    """Return what was written for each sub-question, None where their numbers cannot be found in order.

    Args:
        text: a response that takes up the sub-questions in lines such as ``2. ...`` or ``Step 2: ...``.
        count: sub-questions.
    """
    starts: list[int] = []
    for k in range(1, count + 1):
        pattern = re.compile(
            rf"^[ \t*#]{{0,8}}(?:(?:sub-?question|step|part)\s)?{k}[.):](?!\d)", re.MULTILINE | re.IGNORECASE
        )
        match = pattern.search(text, starts[-1] + 1 if starts else 0)
        if match is None:
            return None
        starts.append(match.start())
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


@dataclass
class _Plan:
    """What was planned for one problem, and by which calls."""

    level: int = 0
    level_from: str = ""
    steps: list[SubQuestion] = field(default_factory=list)
    credits: list[float] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    rows: list[tuple[Row, Role]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class PlanAndBudget(FlowMethod):
    """Split a problem into sub-questions and tell the model in one prompt how many words each is worth.

    A planner rates the problem from 1 to 5, lists sub-questions, and gives them credits. The level sets the budget;
    credits times a decay that favours early steps share it out. Nothing is enforced.

    ``events["plan-and-budget"]`` tells of each response its level and where that is from, the budget, the steps and
    their parts, which fallbacks were needed, the planner's tokens, and the compliance: tokens of each part over its
    budget, where the parts can be told apart in the thinking.

    Source: Plan and Budget: Effective and Efficient Test-Time Scaling on Large Language Model Reasoning,
    arXiv 2505.16122; card ``plan-and-budget``. Follows the release (modes, budgets, schedules, parsing), in wording
    of its own. Here planning is done for each problem and counted; the authors computed it beforehand.
    Reconstruction: plans of more than five steps are cut, and the same malformed reply twice ends the retries.

    Attributes:
        mode: ``vanilla``, the model as it is; ``planned``, sub-questions without budgets; ``global_budget``, a limit
            in tokens without sub-questions; ``planned_global``, both; ``planned_local_uniform`` and
            ``planned_local_weighted``, sub-questions with a limit in words each.
        schedule: decay of the weighted mode: ``constant``, ``linear``, ``polynomial``, ``exponential``, ``cosine``.
        budgets: for the levels 1 to 5.
        level: of every problem, 0 to find out.
        levels: how to find out: by the data set's ``label`` (which tells what a user would not know), ``judged`` by
            the planner, or ``auto``: the label where there is one.
        planner: name or folder of the model that plans, empty for the main model. Beside a model on a server it is
            one on a server.
        planner_tokens: limit on each reply of the planner.
        temperature: of the planner; its top-p is 0.9.
        retries: further attempts after a reply that cannot be read.
        at_least: words for each sub-question, taken from the largest budgets; 0 leaves small ones at nothing.
    """

    slug: ClassVar[str] = "plan-and-budget"
    needs: ClassVar[Need] = Need.TEXT
    thinks: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    mode: str = "planned_local_weighted"
    schedule: str = "polynomial"
    budgets: tuple[int, ...] = (200, 250, 350, 450, 600)
    level: int = 0
    levels: str = "auto"
    planner: str = ""
    planner_tokens: int = 512
    temperature: float = 0.1
    retries: int = 5
    at_least: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, MODES),
            ("schedule", self.schedule, SCHEDULES),
            ("levels", self.levels, LEVELS),
        ):
            if value not in known:
                raise UnknownName(f"{name} of plan-and-budget", value, known)
        if len(self.budgets) != HARDEST or not all(isinstance(b, int) and b >= 1 for b in self.budgets):
            raise ThriftyError("plan-and-budget: budgets must be five whole numbers, as budgets=(200,250,350,450,600)")
        if not 0 <= self.level <= HARDEST:
            raise ThriftyError("plan-and-budget: level must be from 1 to 5, or 0 to find out")
        if self.planner_tokens < 1 or self.retries < 0 or self.at_least < 0 or not 0 <= self.temperature <= 100:
            raise ThriftyError(
                "plan-and-budget: planner_tokens must be at least 1, retries and at_least at least 0, temperature "
                "between 0 and 100"
            )

    def check(self, model: Model) -> None:
        super().check(model)
        if self.mode != "vanilla":
            helper_model(self.planner, model)

    def flow(self, stage: Stage, job: Job) -> Flow:
        *before, question = job.problem.messages
        told: dict[str, object] = {"mode": self.mode}
        messages, plan, parts = job.problem.messages, _Plan(), list[int]()
        if self.mode != "vanilla":
            plan = yield from self._plan(stage, job)
            budget = self.budgets[plan.level - 1]
            parts = self._parts(plan, budget)
            prompt = self._prompt(question["content"], plan, budget, parts)
            messages = (*before, {**question, "content": prompt})
            told |= {"level": plan.level, "level_from": plan.level_from, "budget": budget, "parts": parts}
            told |= {"steps": [f"{s.text} Hint: {s.hint}" for s in plan.steps], "credits": plan.credits}
            told |= {"fallbacks": plan.fallbacks, "planner_tokens": sum(row.usage.total for row, _ in plan.rows)}
        (row,) = yield [stage.call(stage.render(job, messages), messages=messages, stream=0)]
        trace = conclude(row, stage.method, plan.rows, {self.slug: told})
        if parts and isinstance(stage.model, TorchModel) and (written := located(trace.thinking_text, len(parts))):
            spent = [len(stage.model.encode(text)) for text in written]
            compliance = [round(n / part, 2) if part else None for n, part in zip(spent, parts, strict=True)]
            trace.events[self.slug]["compliance"] = compliance
        return trace

    def _plan(self, stage: Stage, job: Job) -> Generator[Sequence[Call], list[Row], _Plan]:
        plan, question = _Plan(), job.problem.question
        label = None if self.levels == "judged" else label_level(job.problem.metadata)
        if self.level:
            plan.level, plan.level_from = self.level, "fixed"
        elif label:
            plan.level, plan.level_from = label, "label"
        elif self.levels == "label":
            plan.level, plan.level_from = HARDEST, "default"
        else:
            judged = yield from self._ask(stage, plan, LEVEL_PROMPT.format(question=question), parse_level, retries=0)
            plan.level, plan.level_from = judged or HARDEST, "judged" if judged else "default"
        if self.mode == "global_budget":
            return plan
        prompt = STEPS_PROMPT.format(question=question, level=plan.level)
        steps = yield from self._ask(stage, plan, prompt, parse_steps, self.retries)
        plan.steps = steps or DIRECT
        if not steps:
            plan.fallbacks.append("steps")
        if self.mode == "planned_local_weighted" and len(plan.steps) > 1:
            prompt = CREDITS_PROMPT.format(question=question, steps=numbered(plan.steps))
            count = len(plan.steps)
            credits = yield from self._ask(stage, plan, prompt, lambda text: parse_credits(text, count), self.retries)
            plan.credits = credits or [1] * count
            if not credits:
                plan.fallbacks.append("credits")
        return plan

    def _ask(
        self, stage: Stage, plan: _Plan, prompt: str, parse: Callable[[str], T | None], retries: int
    ) -> Generator[Sequence[Call], list[Row], T | None]:
        """Ask the planner until its reply can be read; None if it never can."""
        planner = helper_model(self.planner, stage.model)
        settings = helper_settings(stage.settings, self.planner_tokens, temperature=self.temperature, top_p=0.9)
        replies: list[str] = []
        while len(replies) <= retries:
            call = ask(planner, [{"role": "user", "content": prompt}], settings)
            (row,) = yield [replace(call, stream=len(plan.rows) + 1)]
            plan.rows.append((row, role_of(planner, stage.model)))
            reply = reply_of(row)
            if (found := parse(reply)) is not None or reply in replies:
                return found
            replies.append(reply)
        return None

    def _parts(self, plan: _Plan, budget: int) -> list[int]:
        """Return the budget of each step in words, nothing for modes without."""
        if self.mode == "planned_local_uniform":
            return [budget // len(plan.steps)] * len(plan.steps)
        if self.mode == "planned_local_weighted":
            return allocate(plan.credits or [1], budget, self.schedule, self.at_least)
        return []

    def _prompt(self, question: str, plan: _Plan, budget: int, parts: Sequence[int]) -> str:
        whole = WHOLE_LIMIT.format(budget=budget)
        if self.mode == "global_budget":
            return f"{question}\n\n{whole}"
        limit = f" {whole}" if self.mode == "planned_global" else ""
        return EXAM_PROMPT.format(question=question, level=plan.level, steps=numbered(plan.steps, parts), limit=limit)
