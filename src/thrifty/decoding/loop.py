"""The batched decode loop: rows enter as others finish, controllers steer, limits hold.

A row's tokens are a function of its prompt, its key and its controllers: it draws from its own random
stream and attends to its own cache, so neither the batch size nor the order of the problems matters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from thrifty.decoding.batch import DecodeBatch
from thrifty.decoding.controller import Controller, Drafter
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import row_key
from thrifty.errors import ContextOverflow
from thrifty.models.attention import AttentionPolicy
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Trace

AHEAD = 16
"""Plans with drafters that are read ahead for each row of a batch."""


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
        drafter: guesses what the response will be; None for none.
    """

    prompt: str = ""
    controllers: Sequence[Controller] = ()
    settings: Settings | None = None
    prefix: str = ""
    parent: Row | None = None
    keep: bool = False
    stream: int = 0
    drafter: Drafter | None = None


def decode(
    model: TorchModel,
    jobs: Iterable[Job],
    settings: Settings,
    plan: Callable[[Job], Plan],
    method: str,
    policy: AttentionPolicy | None = None,
) -> Iterator[Trace]:
    """Decode jobs in a batch that refills itself.

    Args:
        model: which decodes.
        jobs: what to answer; read lazily, so that memory does not grow with their number.
        settings: how to.
        plan: gives each job its plan.
        method: the name that the traces carry.
        policy: decides what all rows attend to and keep, None for everything.

    Yields:
        A trace for each job, as they finish.

    Raises:
        ContextOverflow: a prompt does not fit; traces of rows at work are lost, finished ones were yielded.
    """
    for row in decode_rows(model, ((job, plan(job)) for job in jobs), settings, policy):
        yield row.trace(method)


@dataclass(frozen=True)
class Entry:
    """A row that is ready to be decoded.

    Attributes:
        row: of which nothing is read yet.
        controllers: which steer it.
        drafter: guesses what it will be; None for none.
    """

    row: Row
    controllers: Sequence[Controller] = ()
    drafter: Drafter | None = None

    @classmethod
    def of(cls, model: TorchModel, job: Job, plan: Plan, settings: Settings) -> Entry:
        """Return the entry of a job; see `begin_row`."""
        return cls(begin_row(model, job, plan, settings), plan.controllers, plan.drafter)


def decode_rows(
    model: TorchModel,
    plans: Iterable[tuple[Job, Plan] | None],
    settings: Settings,
    policy: AttentionPolicy | None = None,
) -> Iterator[Row]:
    """Decode plans in a batch that refills itself; see `decode`.

    Args:
        model: which decodes.
        plans: jobs and what to do with them, read lazily; None says that nothing is ready before another row
            has finished, and ends the decoding where none is at work.
        settings: how to.
        policy: decides what all rows attend to and keep, None for everything.

    Yields:
        The finished rows.

    Raises:
        ContextOverflow: a prompt does not fit.
    """
    size = settings.batch_size
    ready = (plan and Entry.of(model, *plan, settings) for plan in _in_turn(plans, AHEAD * size))
    for finished in decode_steps(model, ready, size, policy, refill=max(1, size // 8)):
        if finished is None:
            return
        yield from finished


def decode_steps(
    model: TorchModel,
    entries: Iterable[Entry | None],
    size: int,
    policy: AttentionPolicy | None = None,
    refill: int = 1,
) -> Iterator[list[Row] | None]:
    """Decode rows that come and go, a step at a time.

    Args:
        model: which decodes.
        entries: read lazily; None says that nothing is ready now.
        size: rows decoded together.
        policy: decides what all rows attend to and keep, None for everything.
        refill: free places from which on others may enter.

    Yields:
        After each step, the rows that it finished; None if there was no step, for nothing is at work or ready. It
        ends when there are no more entries and all rows have finished.
    """
    batch = DecodeBatch(model, policy)
    waiting = iter(entries)
    exhausted = False
    while True:
        free = size - len(batch.rows)
        if not exhausted and (free >= refill or not batch.rows):
            entering: list[Entry] = []
            while len(entering) < free:
                try:
                    ready = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                if ready is None:
                    break
                entering.append(ready)
            if entering:
                batch.admit([e.row for e in entering], [e.controllers for e in entering], [e.drafter for e in entering])
        if batch.rows:
            yield batch.step()
        elif exhausted:
            return
        else:
            yield None


def _in_turn(plans: Iterable[tuple[Job, Plan] | None], ahead: int) -> Iterator[tuple[Job, Plan] | None]:
    """Yield plans in such an order that problems take turns where they have drafters.

    Samples of a problem learn little from each other side by side, where a place is new to all of them at the same
    time; one after the other they learn most.

    Args:
        plans: see `decode_rows`.
        ahead: how many may be read before they are needed.
    """
    source, done = iter(plans), object()
    turns: dict[str, deque[tuple[Job, Plan]]] = {}
    while True:
        read = sum(map(len, turns.values())) < ahead
        ready = next(source, done) if read else None
        if ready is done and not turns:
            return
        if isinstance(ready, tuple):
            if ready[1].drafter is None:
                yield ready
            else:
                turns.setdefault(ready[0].problem.id, deque()).append(ready)
        elif turns:
            name, queue = next(iter(turns.items()))
            del turns[name]
            yield queue.popleft()
            if queue:
                turns[name] = queue
        else:
            yield None


def begin_row(model: TorchModel, job: Job, plan: Plan, settings: Settings) -> Row:
    """Return the row of a job before anything is read.

    Raises:
        ContextOverflow: the prompt does not fit.
    """
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
        row = Row(job, settings, model, key, ids, model.tracker.start(plan.prompt, job.problem.question))
        for token in prefix:
            row.record(token, forced=True)
    row.keep = plan.keep
    return row
