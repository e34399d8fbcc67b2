"""What the command line shows: a response as it comes, tables, JSON, and how far a run is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from thrifty.bench.runner import Progress
    from thrifty.models.base import Model, Settings
    from thrifty.traces.trace import Trace


def stream(model: Model, method: Any, question: str, settings: Settings, silent: bool) -> Trace:
    """Answer a question and show the response as it comes.

    Args:
        model: which answers.
        method: the composition with which; a model that gives text alone answers plainly.
        question: what is asked.
        settings: how to generate.
        silent: whether to show nothing.
    """
    from thrifty.models.base import Job, TextModel
    from thrifty.traces.trace import Problem

    problem = Problem.ask(question)
    dim = sys.stdout.isatty()

    def show(phase: str, text: str) -> None:
        if not silent:
            typer.echo(typer.style(text, dim=True) if dim and phase == "thinking" else text, nl=False)

    if isinstance(model, TextModel) and hasattr(model, "stream"):
        pieces = model.stream(problem.messages, settings)
        while True:
            try:
                show(*next(pieces))
            except StopIteration as finished:
                trace: Trace = finished.value
                break
    else:
        from thrifty.decoding.echo import Echo

        (trace,) = method.solve(model, [Job(problem)], settings, [Echo(show)])
    if not silent:
        typer.echo("")
    return trace


def console() -> Console:
    """Return the console for tables."""
    from rich.console import Console

    # a file or a pipe has no width of its own: wide enough that no number is cut
    return Console(width=None if sys.stdout.isatty() else 140)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def progress() -> Iterator[Progress]:
    """Show progress on stderr: a live bar on a terminal, now and then a line elsewhere."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    started: dict[str, float] = {}
    if not sys.stderr.isatty():
        last = [time.monotonic()]

        def line(method: str, done: int, total: int, tokens: int) -> None:
            began = started.setdefault(method, time.monotonic())
            now = time.monotonic()
            if tokens and (now - last[0] > 10 or done == total):
                last[0] = now
                rate = tokens / max(now - began, 1e-3)
                typer.echo(f"{method}: {done}/{total}, {rate:,.0f} tokens/s", err=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def bar(method: str, done: int, total: int, tokens: int) -> None:
            began = started.setdefault(method, time.monotonic())
            if method not in tasks:
                tasks[method] = bars.add_task(method, total=total, completed=done, rate="")
            rate = tokens / max(time.monotonic() - began, 1e-3)
            bars.update(tasks[method], completed=done, total=total, rate=f"{rate:,.0f} tokens/s")

        yield bar
