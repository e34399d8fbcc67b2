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
    batch = DecodeBatch(model, policy)
    waiting = _in_turn(plans, AHEAD * settings.batch_size)
    exhausted = False
    refill_at = max(1, settings.batch_size // 8)
    while True:
        free = settings.batch_size - len(batch.rows)
        if not exhausted and (free >= refill_at or not batch.rows):
            entering: list[Row] = []
            controllers: list[Sequence[Controller]] = []
            drafters: list[Drafter | None] = []
            while len(entering) < free:
                try:
                    ready = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                if ready is None:
                    break
                entering.append(begin_row(model, *ready, settings))
                controllers.append(ready[1].controllers)
                drafters.append(ready[1].drafter)
            if entering:
                batch.admit(entering, controllers, drafters)
        if not batch.rows:
            return
        yield from batch.step()


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
        # a question may mention think markers: only what follows it tells how the response begins
        question = job.problem.question.strip()
        begins = plan.prompt.rfind(question) + len(question) if question in plan.prompt else 0
        row = Row(job, settings, model, key, ids, model.tracker.start(plan.prompt[begins:]))
        for token in prefix:
            row.record(token, forced=True)
    row.keep = plan.keep
    return row
