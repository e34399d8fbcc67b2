"""The batched decode loop: rows enter as others finish, controllers steer, limits hold.

A row's tokens are a function of its prompt, its key and its controllers: it draws from its own random
stream and attends to its own cache, so neither the batch size nor the order of the problems matters.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thrifty.decoding.controller import Controller, overrides
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import Sampler, row_key
from thrifty.decoding.session import Session
from thrifty.errors import ContextOverflow
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.repetition import repeats
from thrifty.traces.trace import Trace

LOOP_CHECK_EVERY = 32
"""Tokens between two looks for a repetition loop."""


@dataclass(frozen=True)
class Plan:
    """What to do with a job.

    Attributes:
        prompt: the rendered prompt.
        controllers: which steer the response.
        settings: how to generate, None for the settings of the run.
        prefix: how the response begins; the method wrote it, and the model reads it with the prompt.
        parent: a stopped row with a kept cache, to go on from instead of a prompt.
        keep: whether the row's cache is wanted when it stops.
        stream: which of the job's random streams the row draws from.
    """

    prompt: str = ""
    controllers: Sequence[Controller] = ()
    settings: Settings | None = None
    prefix: str = ""
    parent: Row | None = None
    keep: bool = False
    stream: int = 0


class DecodeBatch:
    """The rows that are decoded together.

    Attributes:
        model: which decodes.
        session: their caches and logits, in the order of `rows`.
        rows: those at work.
    """

    def __init__(self, model: TorchModel) -> None:
        self.model = model
        self.session = Session(model)
        self.rows: list[Row] = []
        self._steered: dict[str, list[tuple[Controller, list[int] | None]]] = {}
        self._sampler: Sampler | None = None
        self._keys = np.zeros(0, dtype=np.uint64)
        self._pending: list[int] = []
        self._appended = True
        self._controllers: dict[int, Sequence[Controller]] = {}

    @torch.inference_mode()
    def fork(self, rows: Sequence[Row], room: int) -> Session:
        """Return a session of copies of some rows; see `thrifty.decoding.controller.Batch`."""
        places = {id(row): i for i, row in enumerate(self.rows)}
        index = [places[id(row)] for row in rows]
        copy = self.session.fork(index, room + 1)
        if not self._appended:
            copy.append(torch.tensor([self._pending[i] for i in index], device=self.model.device))
        return copy

    @torch.inference_mode()
    def rewrite(
        self, row: Row, start: int, pieces: Sequence[tuple[str | Sequence[int], bool]], aside: bool = False
    ) -> None:
        """Replace a row's response from a token on; see `thrifty.decoding.controller.Batch`."""
        place = next(i for i, other in enumerate(self.rows) if other is row)
        row.rewrite(start, pieces, aside)
        whole = [*row.prompt_ids, *row.ids]
        # in a step, the newest token is read at its end; before the first one, reading it is what gives logits
        end = len(whole) if self._appended else len(whole) - 1
        stored = self.session.lengths[place]
        known = min(stored, len(row.prompt_ids) + start, end - 1 if self._appended else end)
        fresh = self.session.fork([place], room=end - known)
        fresh.rewind(0, stored - known)
        if known < end:
            with self._tapping(self._controllers[id(row)], fresh):
                fresh.append([whole[known:end]])
            row.usage.forward_passes += 1
        self.session.put(place, fresh)
        if not self._appended:
            self._pending[place] = whole[-1]

    @torch.inference_mode()
    def admit(self, rows: Sequence[Row], controllers: Sequence[Sequence[Controller]]) -> None:
        """Read the prompts of new rows and let their controllers see them."""
        with self._tapping(c for its_controllers in controllers for c in its_controllers):
            fresh = [row for row in rows if row.kept is None]
            if fresh:
                self.session.add([[*row.prompt_ids, *row.ids] for row in fresh])
        heirs = [row for row in rows if row.kept is not None]
        for row in heirs:
            assert row.kept is not None
            self.session.adopt(row.kept)
            row.kept = None
        self.rows.extend([*fresh, *heirs])
        for row, its_controllers in zip(rows, controllers, strict=True):
            self._controllers[id(row)] = its_controllers
            row.usage.forward_passes += not row.continues
            if row.inherited:  # whoever stopped its parent did so before the limits were looked at
                self._limits(row)
            if row.settings.thinking_budget is not None:
                row.events["budget"] = row.settings.thinking_budget
                if row.settings.thinking_budget == 0 and row.thinking:
                    row.close_thinking("budget")
        self._recompose()
        entered = set(map(id, rows))
        for controller, places in self._steered["begin"]:
            mine = self.rows if places is None else [self.rows[i] for i in places]
            controller.begin([r for r in mine if id(r) in entered], self)
        self._show_hidden(entered)

    def _tapping(
        self, controllers: Iterable[Controller], session: Session | None = None
    ) -> AbstractContextManager[None]:
        layers = sorted({layer for controller in controllers for layer in controller.taps})
        return (session or self.session).tap(layers) if layers else nullcontext()

    def _show_hidden(self, only: Container[int] | None = None) -> None:
        for controller, places in self._steered["see_hidden"]:
            index = [
                i
                for i in (range(len(self.rows)) if places is None else places)
                if only is None or id(self.rows[i]) in only
            ]
            if index:
                hidden = {layer: self.session.hidden[layer][index] for layer in controller.taps}
                controller.see_hidden([self.rows[i] for i in index], hidden)

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Write one token to every row, and return the rows that it finished; they are gone then."""
        if any(row.stopped for row in self.rows):  # before their first token
            return self._remove([i for i, row in enumerate(self.rows) if row.stopped])
        rows, session = self.rows, self.session
        tokens = self._choose(session.logits)
        for i, row in enumerate(rows):
            forced = row.forced.popleft() if row.forced else None
            row.record(tokens[i] if forced is None else forced, forced is not None)
            if forced is not None:
                tokens[i] = forced
        self._pending, self._appended = tokens, False
        for controller, places in self._steered["after_token"]:
            controller.after_token(rows if places is None else [rows[i] for i in places], self)
        ended = [i for i, row in enumerate(rows) if self._limits(row)]
        gone = self._remove([i for i in ended if not rows[i].keep])
        if self.rows:
            with self._tapping(c for row in self.rows for c in self._controllers[id(row)]):
                session.append(torch.tensor(self._pending, device=self.model.device))
            for row in self.rows:
                row.usage.forward_passes += 1
        self._appended = True
        if self._steered["see_hidden"]:
            self._show_hidden()
        # a row that is gone on from takes part in the pass over its newest token, whose states it keeps too
        return gone + self._remove([i for i, row in enumerate(self.rows) if row.stopped])

    def _remove(self, places: list[int]) -> list[Row]:
        rows = self.rows
        gone = [rows[i] for i in places]
        for row in gone:
            if row.keep:
                row.kept = self.fork([row], 0)
            row.settle()
            del self._controllers[id(row)]
        if gone:
            order = self.session.drop(places)
            self.rows = [rows[i] for i in order]
            if not self._appended:
                self._pending = [self._pending[i] for i in order]
            self._recompose()
        return gone

    def _choose(self, logits: Tensor) -> list[int]:
        rows = self.rows
        for controller, places in self._steered["adjust_logits"]:
            if places is None:
                logits = controller.adjust_logits(rows, logits)
            else:
                adjusted = controller.adjust_logits([rows[i] for i in places], logits[places])
                logits = logits.clone()
                logits[places] = adjusted
        assert self._sampler is not None
        if self._sampler.greedy:
            tokens: list[int] = logits.argmax(-1).tolist()
        else:
            counters = np.array([len(row.ids) for row in rows], dtype=np.uint64)
            tokens = self._sampler.choose(logits, self._keys, counters).tolist()
        for controller, places in self._steered["next_input"]:
            if places is None:
                controller.next_input(rows, tokens)
            else:
                some = [tokens[i] for i in places]
                controller.next_input([rows[i] for i in places], some)
                for i, token in zip(places, some, strict=True):
                    tokens[i] = token
        return tokens

    def _limits(self, row: Row) -> bool:
        """Apply the limits that hold for every method; return whether the row has ended."""
        if row.stopped:
            return True
        settings, written = row.settings, len(row.ids)
        if row.ids[-1] in self.model.eos_ids and not row.forced:
            row.stopped = "eos"
        elif written >= settings.max_tokens:
            row.stopped = "max_tokens"
        elif len(row.prompt_ids) + written >= self.model.context_length:
            row.stopped = "context"
        elif row.phases.phase == "thinking":
            self._limit_thinking(row, settings, written)
        elif settings.stop and row.phases.phase == "answer" and not row.forced:
            self._stop_strings(row, settings)
        elif settings.loop_stop and written % LOOP_CHECK_EVERY == 0 and repeats(row.ids):
            row.stopped = "loop"
        return row.stopped is not None

    def _limit_thinking(self, row: Row, settings: Settings, written: int) -> None:
        if row.closing is not None:
            return
        room = min(settings.max_tokens, self.model.context_length - len(row.prompt_ids))
        reserve = min(settings.reserve, room // 2)
        if settings.thinking_budget is not None and row.thinking_tokens >= settings.thinking_budget:
            row.close_thinking("budget")
        elif reserve and written + reserve + self.model.close_length >= room:
            row.close_thinking("limit")
        elif settings.loop_stop and written % LOOP_CHECK_EVERY == 0 and repeats(row.ids):
            row.close_thinking("loop")

    def _stop_strings(self, row: Row, settings: Settings) -> None:
        tail = row.text(max(0, len(row.ids) - max(map(len, settings.stop)) - 1))
        if any(s in tail for s in settings.stop):
            row.stopped = "stop"

    def _recompose(self) -> None:
        """Note which controllers steer which rows; None stands for all of them."""
        everyone: dict[Controller, list[int]] = {}
        for i, row in enumerate(self.rows):
            for controller in self._controllers[id(row)]:
                everyone.setdefault(controller, []).append(i)
        self._steered = {
            hook: [
                (c, None if len(places) == len(self.rows) else places)
                for c, places in everyone.items()
                if overrides(c, hook)
            ]
            for hook in ("begin", "adjust_logits", "next_input", "after_token", "see_hidden")
        }
        self._sampler = Sampler.of([row.settings for row in self.rows], self.model.device)
        self._keys = np.array([row.key for row in self.rows], dtype=np.uint64)


def decode(
    model: TorchModel,
    jobs: Iterable[Job],
    settings: Settings,
    plan: Callable[[Job], Plan],
    method: str,
) -> Iterator[Trace]:
    """Decode jobs in a batch that refills itself.

    Args:
        model: which decodes.
        jobs: what to answer; read lazily, so that memory does not grow with their number.
        settings: how to.
        plan: gives each job its plan.
        method: the name that the traces carry.

    Yields:
        A trace for each job, as they finish.

    Raises:
        ContextOverflow: a prompt does not fit; traces of rows at work are lost, finished ones were yielded.
    """
    for row in decode_rows(model, ((job, plan(job)) for job in jobs), settings):
        yield row.trace(method)


def decode_rows(model: TorchModel, plans: Iterable[tuple[Job, Plan] | None], settings: Settings) -> Iterator[Row]:
    """Decode plans in a batch that refills itself; see `decode`.

    Args:
        model: which decodes.
        plans: jobs and what to do with them, read lazily; None says that nothing is ready before another row
            has finished, and ends the decoding where none is at work.
        settings: how to.

    Yields:
        The finished rows.

    Raises:
        ContextOverflow: a prompt does not fit.
    """
    batch = DecodeBatch(model)
    waiting = iter(plans)
    exhausted = False
    refill_at = max(1, settings.batch_size // 8)
    while True:
        free = settings.batch_size - len(batch.rows)
        if not exhausted and (free >= refill_at or not batch.rows):
            entering: list[Row] = []
            controllers: list[Sequence[Controller]] = []
            while len(entering) < free:
                try:
                    ready = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                if ready is None:
                    break
                entering.append(_row(model, *ready, settings))
                controllers.append(ready[1].controllers)
            if entering:
                batch.admit(entering, controllers)
        if not batch.rows:
            return
        yield from batch.step()


def _row(model: TorchModel, job: Job, plan: Plan, settings: Settings) -> Row:
    settings = plan.settings or settings
    name = f"{job.problem.id}#{plan.stream}" if plan.stream else job.problem.id
    key = row_key(settings.seed, name, job.sample)
    if plan.parent is not None:
        row = plan.parent.heir(job, settings, key)
        assert plan.parent.kept is not None, "a row is gone on from only if it was kept"
        row.kept = plan.parent.kept
        if plan.prefix:
            row.force(plan.prefix)
    else:
        prefix = model.encode(plan.prefix) if plan.prefix else []
        ids = model.encode_prompt(plan.prompt, job.sample + plan.stream)
        if len(ids) + len(prefix) >= model.context_length:
            raise ContextOverflow(
                f"the prompt of problem {job.problem.id!r} has {len(ids) + len(prefix)} tokens, but {model.name!r} "
                f"has a context of {model.context_length}: shorten it or load a model with a longer context"
            )
        # a question may mention think markers: only what follows it tells how the response begins
        question = job.problem.question.strip()
        begins = plan.prompt.rfind(question) + len(question) if question in plan.prompt else 0
        row = Row(job, settings, model, key, ids, model.tracker.start(plan.prompt[begins:]))
        for token in prefix:
            row.record(token, forced=True)
    row.keep = plan.keep
    return row
