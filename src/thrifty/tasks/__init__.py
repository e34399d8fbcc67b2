"""Problems and their verifiers: generated ones, one's own files, and data sets from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.errors import BadTask, UnknownName
from thrifty.spec import parse_spec

if TYPE_CHECKING:
    from thrifty.tasks.base import Task


def load_task(name: str, *, skip_bad: bool = False, hold_out: bool = False) -> Task:
    """Return the task that a user names.

    Args:
        name: ``mix`` or ``mix(level=hard)``; ``rg:FAMILY`` for a family of reasoning-gym, options in brackets; the
            path of a file of JSON lines; ``replay:FILE`` for one of recordings (`thrifty.models.replay`); the short
            name of a data set on the hub, such as ``gsm8k``; or ``hf:OWNER/NAME[CONFIG]:SPLIT``.
        skip_bad: leave out records of a file or data set that cannot be used, instead of stopping there.
        hold_out: divide a file or data set into a test and a train split. Generated tasks always have both.

    Raises:
        UnknownName: no task has that name.
        BadTask: the file is missing, or an option is wrong.
        MissingExtra: the task needs a library that is not installed.
        ThriftyError: the name is not of the form ``name(option=value)``.
    """
    # The modules load on use: most callers want one of them. A file named like a data set is ./gsm8k.
    options: dict[str, Any] = {}
    base = name
    if not _exists(name):
        base, options = parse_spec(name)
    if base == "mix":
        from thrifty.tasks.mix import MixTask

        _refuse_unknown(base, options, ("level",))
        return MixTask(**options)
    if base.startswith("rg:"):
        from thrifty.tasks.reasoning_gym import ReasoningGymTask

        return ReasoningGymTask(base.removeprefix("rg:"), options)
    options = {**({"skip_bad": True} if skip_bad else {}), **({"hold_out": True} if hold_out else {}), **options}
    if base.startswith("replay:"):
        from thrifty.tasks.replay import ReplayTask

        _refuse_unknown(base, options, ("hold_out", "skip_bad"))
        return ReplayTask(base.removeprefix("replay:"), **options)
    from thrifty.tasks.hub import HUB, HubTask

    if base in HUB or base.startswith("hf:"):
        _refuse_unknown(base, options, ("answer", "choices", "hold_out", "kind", "question", "skip_bad"))
        return HubTask(base, **options)
    if base.endswith(".jsonl") or _exists(base):
        from thrifty.tasks.jsonl import JsonlTask

        _refuse_unknown(base, options, ("hold_out", "skip_bad"))
        return JsonlTask(base, **options)
    raise UnknownName(
        "task",
        base,
        ["mix", "rg:FAMILY", "FILE.jsonl", "replay:FILE", "hf:OWNER/NAME", *HUB],
        "A family of reasoning-gym is written rg:chain_sum.",
    )


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # longer than a path may be
        return False


def _refuse_unknown(name: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse an option that is unknown, or whose value is neither text nor, for a switch, true or false."""
    for key, value in options.items():
        if key not in known:
            raise BadTask(f"{name} has no option {key}. Known: {', '.join(known)}.")
        wanted, words = (bool, "true or false") if key in ("hold_out", "skip_bad") else (str, "text")
        if not isinstance(value, wanted):
            raise BadTask(f"{name}: {key} must be {words}, not {value!r}")
