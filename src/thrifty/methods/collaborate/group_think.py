"""Group Think: several thinkers in one model, each of whom sees what the others write as they write it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from thrifty.catalogue import Need
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.flow import conclude
from thrifty.decoding.loop import Plan, begin_row, decode_rows
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.decoding.threads import Group, ThreadPool
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods.base import Method
from thrifty.methods.shared.candidates import sampling
from thrifty.models.base import Job, Model, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Trace

TEAM_PROMPT = (
    "You are a team of {count} thinkers, numbered 1 to {count}, who think about this at the same time. Each of you "
    "sees what the others have written so far. Split the work, do not repeat what another thinker has done, and turn "
    "to something else when another is ahead of you."
)
HEADER = "Thinker {number}:\n"
BETWEEN = "\n\n"
CUE = "\n\nFinal answer:"
"""What leads a model without think blocks from the threads to the answer."""
CHOICES = {"visibility": ("shared", "independent"), "layout": ("batch", "interleaved"), "until": ("all", "any")}


def completion_coverage(threads: Iterable[Iterable[str]], wanted: int, valid: Collection[str] | None = None) -> float:
    """Return the completion coverage of an enumeration: min(1, distinct valid items over all threads / wanted).

    Four threads that list 12 different items between them cover 12 wanted ones wholly; if all four list the same
    three, they cover 0.25.

    Args:
        threads: the items that each of them lists.
        wanted: how many were asked for.
        valid: the items that count, None for all.
    """
    items = {item for thread in threads for item in thread}
    return min(1.0, len(items if valid is None else items & set(valid)) / wanted)


def duplicate_rate(threads: Iterable[Iterable[str]]) -> float:
    """Return the share of what the threads list that another thread lists as well, the first time not counted.

    0.75 for four threads that list the same three items, 0 where all items differ or there are none. Repetitions
    within a thread do not count. Reconstruction: the paper compares duplication without defining it.

    Args:
        threads: the items that each of them lists.
    """
    items = [set(thread) for thread in threads]
    listed = sum(map(len, items))
    return 1 - len(set().union(*items)) / listed if listed else 0.0


class _Answer(Controller):
    """Leads from the threads to the answer, unless a single one got there by itself."""

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if row.thinking:
                row.close_thinking(GroupThink.slug)
            elif row.phase == "answer" and row.closed_by is None:
                row.force(CUE)


@dataclass(frozen=True, kw_only=True)
class GroupThink(Method):
    """Let several thinkers share one context and think in lock-step, then answer from what all of them wrote.

    Thinker n writes the token at position P + (n - 1) * S + k of a prompt of P tokens and slots of S, and sees the
    prompt, its own tokens, and those that the others wrote in earlier steps. When all have stopped, their threads
    follow each other as the thinking of an ordinary response, which the model reads again to answer.

    ``max_tokens`` and ``thinking_budget`` bound the response as ever: the thinkers share what they leave for the
    thinking equally. A response that leaves them nothing, or a single thinker nothing to think, is the plain model's.

    ``events["group-think"]`` holds the latency (``steps`` of the thinkers, and ``latency``, steps until the answer was
    written) beside what it cost: the ``tokens`` that each thinker wrote, why each ``ended`` (``closed``, ``eos``,
    ``limit``, ``loop``, ``done``), and the share of their lines that are ``duplicates``. The account counts prompt and
    threads twice, as they are read twice, the second time the threads as reread. Passes are fewer than tokens.

    Source: Group Think: Multiple Concurrent Reasoning Agents Collaborating at Token Level Granularity,
    arXiv 2505.11107; card ``group-think``. Follows the paper's rule and both implementations, ``batch`` for one user
    and ``interleaved`` for a data centre; no code was released. Reconstruction: the wording of the prompt, the slots,
    headers, budgets, the temperature, and the reading of all threads by one ordinary decode. Keys of later slots keep
    their larger positions. Headers are read in one pass before the first step.

    Attributes:
        thinkers: N; 1 is the model as it is.
        steps: tokens that each thinker may write, 0 for its share of the limits alone.
        visibility: ``shared``, or ``independent`` for the baseline of thinkers who do not see each other.
        layout: which tokens of the same step are seen: none in ``batch``, those of thinkers with smaller numbers in
            ``interleaved``.
        slot: S, at least what a thinker writes with its header; -1 for just that, 0 for no offsets.
        until: when the thinking ends: when ``all`` thinkers have ended, or ``any`` has come to an end of its own.
        header: how the thread of each begins, ``{number}`` for its number; empty for none.
        instruct: whether the prompt tells the model that it is a team.
        temperature: of the thinkers where the run is greedy; the answer keeps the run's.
    """

    slug: ClassVar[str] = "group-think"
    needs: ClassVar[Need] = Need.LOGITS | Need.KV
    thinks: ClassVar[bool] = False
    thinkers: int = 2
    steps: int = 0
    visibility: str = "shared"
    layout: str = "batch"
    slot: int = -1
    until: str = "all"
    header: str = HEADER
    instruct: bool = True
    temperature: float = 0.7

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UnknownName(f"{name} of group-think", getattr(self, name), known)
        if self.thinkers < 1 or self.steps < 0 or self.slot < -1 or not 0 < self.temperature <= 100:
            raise ThriftyError(
                "group-think: thinkers must be at least 1, steps at least 0, slot at least -1, temperature above 0 "
                "and at most 100"
            )
        try:
            self._header(1)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ThriftyError("group-think: a header has no field but {number}, as in 'Thinker {number}:'") from None

    def _header(self, number: int) -> str:
        return self.header.format(number=number) if self.thinkers > 1 else ""

    def check(self, model: Model) -> None:
        super().check(model)
        if isinstance(model, TorchModel) and model.window is not None:
            raise ThriftyError(
                f"group-think: {model.name!r} has layers that look {model.window} positions back, but the slots of "
                "thinkers stand farther apart: take a model whose layers all see everything"
            )

    def solve(
        self, model: Model, jobs: Iterable[Job], settings: Settings, watch: Sequence[Controller] = ()
    ) -> Iterator[Trace]:
        """Answer problems; see `Method.solve`. What watches sees the last, ordinary part of each response."""
        self.check(model)
        assert isinstance(model, TorchModel)
        return self._solve(model, jobs, settings, watch)

    def _solve(
        self, model: TorchModel, jobs: Iterable[Job], settings: Settings, watch: Sequence[Controller]
    ) -> Iterator[Trace]:
        groups: dict[int, tuple[Group, Row]] = {}  # by the identity of a job of their own
        pool = ThreadPool(model, self.visibility == "shared", self.layout == "interleaved", self.until == "any")

        def plans() -> Iterator[tuple[Job, Plan]]:
            waiting = (Job(job.problem, job.sample) for job in jobs)
            while True:
                entering: list[Group] = []
                while len(pool.groups) + len(entering) < settings.batch_size and (job := next(waiting, None)):
                    if group := self._group(model, job, settings):
                        entering.append(group)
                    else:
                        yield job, Plan(model.render(job.problem.messages), watch)
                if entering:
                    pool.admit(entering)
                if not pool.groups:
                    return
                for ended in pool.step():
                    read = self._read(model, ended)
                    groups[id(read.job)] = (ended, read)
                    yield read.job, Plan(controllers=[_Answer(), *watch], parent=read)

        for row in decode_rows(model, plans(), settings):
            if (found := groups.pop(id(row.job), None)) is None:
                yield conclude(row, self.spec)
                continue
            group, read = found
            trace = conclude(row, self.spec, [(read, "sample")], {self.slug: self._told(group, row)})
            trace.usage.wall_seconds = time.perf_counter() - group.threads[0].started
            yield trace

    def _group(self, model: TorchModel, job: Job, settings: Settings) -> Group | None:
        """Return the threads of a job; None if they could not write anything."""
        *before, question = job.problem.messages
        alone = self.thinkers == 1
        if self.instruct and not alone:
            team = TEAM_PROMPT.format(count=self.thinkers)
            question = {**question, "content": f"{question['content']}\n\n{team}"}
        prompt = model.render([*before, question])
        own = sampling(settings, self.thinkers, self.temperature)
        opened = begin_row(model, job, Plan(prompt), own).phase == "thinking"
        if alone and not opened:
            return None
        if model.think.thinks and not opened:
            prompt += model.think.force_open
        threads = [
            begin_row(model, job, Plan(prompt, prefix=self._header(n + 1), stream=n), own) for n in range(self.thinkers)
        ]
        header = max(len(row.ids) for row in threads)
        room, slot = self._room(model, settings, len(threads[0].prompt_ids), header)
        return Group(threads, room, slot) if room > 0 else None

    def _room(self, model: TorchModel, settings: Settings, prompt: int, header: int) -> tuple[int, int]:
        """Return how many tokens each thinker may write behind its header, and the length of a slot."""
        whole = min(settings.max_tokens, model.context_length - prompt)
        # a single thinker stops where the decode loop would close the thinking, which it then does
        reserve = min(settings.reserve, whole // 2)
        closing = model.close_length if model.think.thinks else len(model.encode(CUE))
        limits = [whole - reserve - (closing if reserve else 0)]
        if settings.thinking_budget is not None:
            limits.append(settings.thinking_budget)
        joints = len(model.encode(BETWEEN)) if self.thinkers > 1 else 0
        each = min(limits) // self.thinkers - header - joints
        if self.thinkers == 1 and settings.thinking_budget != 0:
            each = max(each, 1)  # the loop, too, looks at its limits only behind the first token
        each = min(each, self.steps) if self.steps else each
        if self.slot <= 0:
            return each, 0 if self.slot == 0 else each + header
        if self.slot <= header:
            raise ThriftyError(f"group-think: a slot of {self.slot} has no room behind a header of {header} tokens")
        slot = min(self.slot, (model.context_length - prompt) // self.thinkers)
        return min(each, slot - header), slot

    def _read(self, model: TorchModel, group: Group) -> Row:
        """Return the row whose response is what all threads wrote, read."""
        first = group.threads[0]
        if len(group.threads) == 1:
            row, row.kept = first, group.kept
        else:
            row = Row(first.job, first.settings, model, first.key, first.prompt_ids, replace(first.begun))
            for thread, header in zip(group.threads, group.headers, strict=True):
                for token in model.encode(BETWEEN) if row.ids else ():
                    row.record(token, forced=True)
                for i, token in enumerate(_thought(model, thread)):
                    row.record(token, forced=i < header)
                # all but what ended the thread is read again, and that was written, but does not stay
                row.usage.reread += len(thread.ids)
            row.kept = Session(model)
            row.kept.add([[*row.prompt_ids, *row.ids]])
            row.usage.prompt += len(row.prompt_ids)
            row.usage.forward_passes += 1
            row.usage.flops += model.flops(len(row.prompt_ids) + len(row.ids), 0)
        row.usage.prompt += len(row.prompt_ids)
        row.usage += group.usage
        return row

    def _told(self, group: Group, row: Row) -> dict[str, Any]:
        texts = [thread.text(header) for thread, header in zip(group.threads, group.headers, strict=True)]
        lines = [[line.strip() for line in text.splitlines() if line.strip()] for text in texts]
        return {
            "thinkers": len(group.threads),
            "steps": group.steps,
            "latency": group.steps + len(row.ids) - row.inherited,
            "tokens": [len(t.ids) - header for t, header in zip(group.threads, group.headers, strict=True)],
            "ended": [thread.stopped for thread in group.threads],
            "duplicates": round(duplicate_rate(lines), 4),
        }


def _thought(model: TorchModel, thread: Row) -> list[int]:
    """Return the tokens of a thread without what ended it."""
    if thread.stopped == "eos":
        return thread.ids[:-1]
    if thread.stopped != "closed":
        return thread.ids
    pieces = [model.texts.bytes_of(token) for token in thread.ids]
    spelled = sum(map(len, pieces))
    end = b"".join(pieces).rfind(model.think.close.encode())
    count = len(pieces)
    while spelled > end:  # the marker may be split over tokens
        count -= 1
        spelled -= len(pieces[count])
    return thread.ids[:count]
