"""One response in the making: its tokens, phase, forced tokens and account."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from thrifty.decoding.session import Session
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.answers import extract_answer
from thrifty.traces.think import Phases
from thrifty.traces.trace import Kind, Phase, Segment, Trace, Usage


@dataclass(eq=False, slots=True)
class Row:
    """The state of one response, as controllers see it and steer it.

    Attributes:
        job: what is being answered.
        settings: how to generate.
        model: which generates.
        key: of its random stream.
        prompt_ids: the rendered prompt.
        phases: where its thinking stands.
        ids: tokens of the response so far.
        thinking_tokens: of them within thinking, forced ones included.
        line_ended: whether the newest token completed a line.
        paragraph_ended: whether it completed a blank line; once for each run of blank lines.
        line: index in `ids` where the line that is being written (or was just completed) begins.
        forced: tokens to write next, whatever the model prefers.
        closed_by: who ended the thinking; None while it is open.
        closing: who is about to end it with forced tokens.
        state: what controllers remember for this row, by controller.
        events: what to tell reports.
        usage: the account.
        stopped: why it ended; None while it goes on.
        side: segments of side streams, such as probes.
        started: when it was admitted, on the performance counter.
        keep: whether its cache is wanted when it stops.
        kept: a session of this row alone, its newest token included, once it has stopped.
        inherited: tokens in `ids` that another row wrote, whose cache this one took over.
        continues: whether it took over the cache of another row, which may not have written anything.
        asides: indices in `ids` of what methods told the model in between.
        begun: where the thinking stood before the first token.
        answer_start: index in `ids` where the answer begins, behind the last closer and the blanks that follow it.
    """

    job: Job
    settings: Settings
    model: TorchModel
    key: int
    prompt_ids: list[int]
    phases: Phases
    ids: list[int] = field(default_factory=list)
    thinking_tokens: int = 0
    line_ended: bool = False
    paragraph_ended: bool = False
    line: int = 0
    forced: deque[int] = field(default_factory=deque)
    closed_by: str | None = None
    closing: str | None = None
    state: dict[Any, Any] = field(default_factory=dict)
    events: dict[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    stopped: str | None = None
    side: list[Segment] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    keep: bool = False
    kept: Session | None = None
    inherited: int = 0
    continues: bool = False
    asides: set[int] = field(default_factory=set)
    begun: Phases = field(init=False)
    answer_start: int = 0
    _runs: list[tuple[int, Kind, Phase]] = field(default_factory=list)
    _after_break: bool = False
    _next_line: int = 0

    def __post_init__(self) -> None:
        self.begun = replace(self.phases)

    @property
    def phase(self) -> Phase:
        """Of the next token."""
        return self.phases.phase

    @property
    def thinking(self) -> bool:
        """Whether the row is within its thinking and nobody is closing it."""
        return self.phases.phase == "thinking" and self.closing is None

    @property
    def newest_phase(self) -> Phase:
        """Of the newest token; the next one may begin another."""
        return self._runs[-1][2]

    @property
    def newest_kind(self) -> Kind:
        """Of the newest token: who wrote it."""
        return self._runs[-1][1]

    def text(self, start: int = 0) -> str:
        """Return the text of the response from a token on, asides left out."""
        if self.asides:
            return self.model.texts.text(self.ids[i] for i in range(start, len(self.ids)) if i not in self.asides)
        return self.model.texts.text(self.ids[start:])

    def line_text(self) -> str:
        """Return the line that was just completed, or the beginning of the one being written."""
        return self.text(self.line)

    def force(self, text: str) -> None:
        """Write a text next, whatever the model prefers."""
        self.forced.extend(self.model.encode(text))

    def close_thinking(self, by: str, text: str = "") -> None:
        """End the thinking by force and let the model answer.

        Args:
            by: who does it; it becomes the exit reason.
            text: what to write before the closing marker.
        """
        if self.closing is not None:
            return
        before = text or (self.text(max(0, len(self.ids) - 1)) if self.ids else "\n")
        self.closing = by
        # what was still to be forced belongs to a thought that ends here
        self.forced.clear()
        self.force(text + ("" if before.endswith("\n") else "\n") + self.model.think.force_close)

    def settle(self) -> None:
        """Complete the account; the row has ended."""
        known = len(self.prompt_ids) + self.inherited if self.continues else 0
        read = len(self.prompt_ids) + len(self.ids) - known
        self.usage.prompt += 0 if self.continues else len(self.prompt_ids)
        self.usage.flops += self.model.flops(read + self.usage.reread, known)
        self.usage.wall_seconds = time.perf_counter() - self.started
        self.events.update(self.model.notes(self.prompt_ids, self.ids))

    def stop(self, reason: str) -> None:
        """End the response after the newest token."""
        self.stopped = reason

    def record(self, token: int, forced: bool) -> None:
        """Append one token that was chosen or forced, and follow its phase."""
        before: Phase = self.phases.phase
        closed = self.phases.closed
        found = self.model.tracker.feed(self.phases, token)
        after = self.phases.phase
        # a token that completes a marker belongs to the thinking on either side of it
        phase: Literal["thinking", "answer"] = "thinking" if "thinking" in (before, after) else "answer"
        if self.phases.closed > closed:
            self.closed_by = self.closing or "model"
            # the room that is left belongs to the answer: another block would end where the response does
            self.phases.final = self.closing == "limit"
            self.closing = None
            phase = "thinking"
        kind: Kind = "injected" if forced else phase
        if not self._runs or self._runs[-1][1:] != (kind, phase):
            self._runs.append((len(self.ids), kind, phase))
        self.ids.append(token)
        if phase == "thinking":
            self.thinking_tokens += 1
            self.answer_start = len(self.ids)
        elif closed and self.answer_start == len(self.ids) - 1 and not self.model.texts.bytes_of(token).strip():
            self.answer_start = len(self.ids)
        if len(self.ids) <= self.inherited:
            pass
        elif forced:
            self.usage.injected += 1
        elif phase == "thinking":
            self.usage.thinking += 1
        else:
            self.usage.answer += 1
        self._follow_lines(found, token)

    def mark_latent(self) -> None:
        """Note that the model reads a vector instead of the newest token, which stands for it in the text."""
        start, kind, phase = self._runs[-1]
        if kind not in ("thinking", "answer"):
            raise ValueError("only what the model wrote can be a latent step")
        if start == len(self.ids) - 1:
            self._runs.pop()
        if not self._runs or self._runs[-1][1:] != ("latent", phase):
            self._runs.append((len(self.ids) - 1, "latent", phase))
        if len(self.ids) > self.inherited:
            setattr(self.usage, kind, getattr(self.usage, kind) - 1)
            self.usage.latent_steps += 1

    def _record_aside(self, token: int) -> None:
        """Append one token of an aside: no marker, line or repetition of the response is to be seen in it."""
        if not self._runs or self._runs[-1][1:] != ("injected", "aside"):
            self._runs.append((len(self.ids), "injected", "aside"))
        self.asides.add(len(self.ids))
        self.ids.append(token)
        self.usage.injected += len(self.ids) > self.inherited
        self.line_ended = self.paragraph_ended = False

    def _follow_lines(self, found: tuple[int, ...], token: int) -> None:
        tracker = self.model.tracker
        self.line = self._next_line
        self.line_ended = tracker.LINE in found
        self.paragraph_ended = tracker.PARAGRAPH in found and not self._after_break
        if self.line_ended:
            self._next_line = len(self.ids)
        if self.paragraph_ended:
            self._after_break = True
        elif self._after_break and self.model.texts.bytes_of(token).strip(b"\n"):
            self._after_break = False

    def heir(self, job: Job, settings: Settings, key: int) -> Row:
        """Return a row that goes on where this one stopped, with an account of its own.

        Args:
            job: what it is for.
            settings: how it goes on; limits count this row's tokens too.
            key: of its own random stream.
        """
        heir = Row(job, settings, self.model, key, self.prompt_ids, replace(self.phases), list(self.ids))
        heir.thinking_tokens, heir.closed_by = self.thinking_tokens, self.closed_by
        heir.inherited, heir._runs, heir.begun = len(self.ids), list(self._runs), self.begun
        heir.asides, heir.answer_start = set(self.asides), self.answer_start
        heir.continues = True
        heir._after_break, heir._next_line = self._after_break, self._next_line
        heir.line = heir._next_line
        return heir

    def rewrite(
        self,
        start: int,
        pieces: Sequence[tuple[str | Sequence[int], bool]],
        aside: bool = False,
        read: int | None = None,
    ) -> None:
        """Replace the response from a token on.

        The account keeps what was replaced, as reread: it was written once, and what stands there now is read.

        Args:
            start: index of the first token to replace.
            pieces: what to put there: texts or token ids, and whether the method wrote them.
            aside: whether what the method wrote is an aside to the model.
            read: tokens that the model has read, None for all; those behind are no latent steps, for it will read
                them as they are.

        Raises:
            ValueError: no token would remain.
        """
        written = [(t, f) for new, f in pieces for t in (self.model.encode(new) if isinstance(new, str) else new)]
        if not start and not written:
            raise ValueError("a response cannot be rewritten to nothing")
        old, kinds, asides = self.ids[:start], self._kinds()[:start], self.asides
        closer, closing, final = self.closed_by, self.closing, self.phases.final
        self.usage.reread += len(self.ids) - start
        self.phases = replace(self.begun)
        self.ids, self._runs, self.asides, self.thinking_tokens = [], [], set(), 0
        self.usage.thinking = self.usage.answer = self.usage.injected = self.usage.latent_steps = 0
        self.closed_by = self.closing = None
        self._after_break, self._next_line, self.answer_start = False, 0, 0
        latent = {i for i, kind in enumerate(kinds[:read]) if kind == "latent"}
        kept = [(token, kinds[i] == "injected", i in asides) for i, token in enumerate(old)]
        for i, (token, forced, is_aside) in enumerate([*kept, *((t, f, f and aside) for t, f in written)]):
            if is_aside:
                self._record_aside(token)
            else:
                self.record(token, forced)
            if i in latent:
                self.mark_latent()
        self.closing = closing
        if self.closed_by:  # the closer still stands, and so does who wrote it
            self.closed_by = closer or self.closed_by
            self.phases.final = final

    def _kinds(self) -> list[Kind]:
        """Return the kind of each token."""
        stops = [*(start for start, _, _ in self._runs[1:]), len(self.ids)]
        return [kind for (start, kind, _), stop in zip(self._runs, stops, strict=True) for _ in range(start, stop)]

    def runs(self, start: int = 0) -> Iterator[tuple[Kind, Phase, tuple[int, ...]]]:
        """Yield the tokens from one on, in runs of one kind and phase."""
        stop = len(self.ids)
        found: list[tuple[Kind, Phase, tuple[int, ...]]] = []
        for begins, kind, phase in reversed(self._runs):
            if stop <= start:
                break
            found.append((kind, phase, tuple(self.ids[max(begins, start) : stop])))
            stop = begins
        yield from reversed(found)

    def trace(self, method: str) -> Trace:
        """Return the finished record."""
        texts, end_ids, segments = self.model.texts, self.model.eos_ids, list[Segment]()
        for kind, phase, ids in self.runs():
            # in an aside, what would end a response is the end of a turn that it quotes
            shown = ids if phase == "aside" else [t for t in ids if t not in end_ids]
            segments.append(Segment(kind, phase, texts.text(shown), ids))
        unclosed = self.phases.phase == "thinking"
        answer = "".join(s.text for s in segments if s.phase == "answer")
        return Trace(
            problem_id=self.job.problem.id,
            method=method,
            sample=self.job.sample,
            seed=self.settings.seed,
            segments=segments + self.side,
            stop_reason=self.stopped or "stop",
            closed_by=None if unclosed else self.closed_by or "prompt",
            answer=None if unclosed else extract_answer(answer),
            usage=self.usage,
            events=self.events,
        )
