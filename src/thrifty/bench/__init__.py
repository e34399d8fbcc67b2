"""Measuring methods against vanilla on the same problems."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thrifty.models.base import Model
    from thrifty.tasks.base import Task


def bench(
    model: str | Model,
    task: str | Task = "mix",
    methods: Sequence[str] = ("vanilla", "cgrs", "first-try"),
    *,
    out: str | Path,
    limit: int | None = 100,
    caps: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Measure methods on a task and return the summary; the folder then holds records and reports.

    Args:
        model: a loaded model, or its name.
        task: a loaded task, or its name.
        methods: specifications, as ``cgrs+first-try``; ``family:control`` stands for those of the family that run on
            the model.
        out: folder of the run; it resumes what it holds.
        limit: number of problems, None for all of a finite task.
        caps: whether to run the plain cap at each method's own mean length.
        **settings: fields of `thrifty.models.base.Settings`.

    Raises:
        ThriftyError: something in the arguments cannot be; see `thrifty.bench.runner.Bench.run`.
    """
    from thrifty.bench.report import write_reports
    from thrifty.bench.runner import Bench
    from thrifty.methods import expand_families
    from thrifty.models import load_model
    from thrifty.models.base import Settings
    from thrifty.tasks import load_task

    loaded = load_model(model) if isinstance(model, str) else model
    source = load_task(task) if isinstance(task, str) else task
    folder = Path(out)
    specs, _ = expand_families(methods, loaded)
    summary = Bench(loaded, source, tuple(specs), folder, limit, Settings(**settings), caps).run()
    write_reports(folder, summary)
    return summary


class _CallableModule(ModuleType):
    """``thrifty.bench`` names this package as soon as anything in it is imported, so it must be callable itself."""

    def __call__(self, *args: Any, **options: Any) -> dict[str, Any]:
        return bench(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
