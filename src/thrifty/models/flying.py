"""Requests in flight, so many at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue

from thrifty.models.base import Job
from thrifty.traces.trace import Trace


def fly(
    jobs: Iterable[Job], seats: int, start: Callable[[Job], Future[Trace]], land: Callable[[Future[Trace]], Trace]
) -> Generator[Trace, None, None]:
    """Do jobs, some at a time; traces come as they finish.

    Args:
        jobs: read lazily.
        seats: jobs in flight at the same time.
        start: begins a job; cancelling what it returns stops it.
        land: returns what a finished one holds, or raises what went wrong. What had finished by then is yielded first.

    Returns:
        The traces; closing the generator cancels what is in flight.
    """
    flying: set[Future[Trace]] = set()
    landed: SimpleQueue[Future[Trace]] = SimpleQueue()
    source = iter(jobs)

    def launch(seats: int) -> None:
        for _ in range(seats):
            if (job := next(source, None)) is not None:
                future = start(job)
                flying.add(future)
                future.add_done_callback(landed.put)

    try:
        launch(seats)
        while flying:
            found = [landed.get()]
            while not landed.empty():
                found.append(landed.get())
            for future in sorted(found, key=lambda f: f.cancelled() or f.exception() is not None):
                trace = land(future)
                flying.discard(future)
                launch(1)  # before the caller takes its time over this trace
                yield trace
    finally:
        for future in flying:
            future.cancel()
