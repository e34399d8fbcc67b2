"""What a bench run shows in a terminal: its table, two runs side by side; and the words and numbers of all reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from thrifty.bench.statistics import Interval, newcombe
from thrifty.errors import ThriftyError

Summary = Mapping[str, Any]
"""What `thrifty.bench.statistics.summarise` returns."""

_CONTROLS = {
    **{i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"},
    **dict.fromkeys([*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}


def plain(text: object) -> str:
    """Return a text with visible stand-ins for what no terminal or page should meet: controls, lone surrogates."""
    return str(text).translate(_CONTROLS)


def shortened(text: str, length: int) -> str:
    """Return a text with the middle of a long one left out."""
    return text if len(text) <= length else text[: length // 2] + "…" + text[-(length - length // 2 - 1) :]


class Cell(NamedTuple):
    """What a table shows in one place: a value, a smaller detail under it, and how it is meant."""

    value: str
    detail: str = ""
    tone: str = ""  # good, bad, or neither


COLUMNS = ("accuracy", "tokens", "thinking", "ratio", "change", "cap", "e3", "time")
"""Headings of the cells of a method."""
_STYLES = {"good": "green", "bad": "red", "": ""}


def number(value: float | None) -> str:
    """Write a number: whole from 100 on, and a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}"


def _interval(ends: Sequence[float] | None, form: str = "") -> str:
    """Write an interval, unless it has no width."""
    if ends is None or ends[0] == ends[1]:
        return ""
    return "..".join(format(end, form) for end in ends)


def _percents(ends: Sequence[float] | None, sign: str = "") -> str:
    """Write an interval of shares in percent, with no more digits than its width bears."""
    digits = 0 if ends is None or ends[1] - ends[0] >= 0.095 else 1
    return _interval(ends and [100 * end for end in ends], f"{sign}.{digits}f")


def percent(value: float | None, form: str = ".1f") -> str:
    """Write a share in percent, and a dash for none."""
    return "-" if value is None else f"{value * 100:{form}}%"


def _e3(value: float | None) -> str:
    """Write an E3 for a thousand tokens, and a dash for none."""
    return "-" if value is None else f"{value * 1000:.2f}"


def _tone(ends: Sequence[float] | None, no_effect: float, good_below: bool) -> str:
    """Say what an interval shows: nothing as long as it holds the value of no effect."""
    if ends is None or ends[0] <= no_effect <= ends[1]:
        return ""
    return "good" if (ends[1] < no_effect) == good_below else "bad"


def cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Return the cells of a method, in the order of `COLUMNS`."""
    ratio, ratio_ci, change, change_ci = (
        row[key] for key in ("token_ratio", "token_ratio_ci", "accuracy_diff", "accuracy_diff_ci")
    )
    return (
        Cell(percent(row["accuracy"]), _percents(row["accuracy_ci"])),
        Cell(number(row["tokens_mean"])),
        Cell(number(row["thinking_tokens_mean"])),
        Cell("-" if ratio is None else f"{ratio:.2f}", _interval(ratio_ci, ".2f"), _tone(ratio_ci, 1, True)),
        Cell(
            "-" if change is None else f"{change * 100:+.1f}",
            _percents(change_ci, "+"),
            _tone(change_ci, 0, False),
        ),
        Cell(percent(row["cap_accuracy_at_same_tokens"])),
        Cell(_e3(row["e3"])),
        Cell(number(row["wall_seconds"]) + "s" * (row["wall_seconds"] is not None)),
    )


def heading(summary: Summary) -> str:
    """Name the model and the task of a run."""
    return plain(f"{summary['model']} on {summary['task']}")


def size(summary: Summary) -> str:
    """Say how many responses a run is about, and its seed."""
    samples = summary["samples"] or 1
    each = f" ({samples} samples a problem)" if samples > 1 else ""
    return f"{_most(summary):,} responses of each method{each}, seed {summary['seed']}"


def _most(summary: Summary) -> int:
    return max((row["n"] for row in summary["methods"].values()), default=0)


def notes(summary: Summary) -> list[str]:
    """Return what a reader must know beside the numbers."""
    found = [
        "Small: 95% intervals. Ratio (of tokens) and change (of accuracy, in points) are against vanilla on the same "
        "problems; cap is the accuracy of a plain cap on the thinking that spends as many tokens; e3 is the accuracy "
        "(a fraction) squared for each thousand tokens generated (without prompt, probes and helpers)."
    ]
    for spec, row in summary["methods"].items():
        if row["n"] < _most(summary):
            found.append(plain(f"{spec} is incomplete: {row['n']:,} of {_most(summary):,} responses."))
        if row["budget_violations"]:
            found.append(plain(f"{spec} went beyond its budget in {row['budget_violations']:,} responses."))
    return found


def table(summary: Summary) -> Table:
    """Return the summary as a table that fits 80 columns.

    Args:
        summary: of a run.
    """
    found = _table(f"{heading(summary)}: {size(summary)}", notes(summary))
    for name in COLUMNS:
        found.add_column(name, justify="right", no_wrap=True)
    for spec, row in summary["methods"].items():
        found.add_row(Text(plain(spec)), *map(_rich, cells(row)))
    return found


def compare(first: Summary, second: Summary) -> Table:
    """Set two runs side by side, method by method.

    Args:
        first: summary of one run.
        second: summary of another; differences are its values less those of the first.

    Raises:
        ThriftyError: they have no method in common.
    """
    ours, theirs = first["methods"], second["methods"]
    shared = [spec for spec in ours if spec in theirs and ours[spec]["n"] and theirs[spec]["n"]]
    if not shared:
        names = [plain(", ".join(methods) or "none") for methods in (ours, theirs)]
        raise ThriftyError(f"the runs have no method in common: the first has {names[0]}; the second has {names[1]}")
    remarks = [f"{name}: {heading(s)}, {size(s)}." for name, s in (("first", first), ("second", second))]
    remarks.append("Small: 95% intervals, which take the two runs as independent.")
    for name, here, there in (("first", ours, theirs), ("second", theirs, ours)):
        if only := [spec for spec in here if spec not in there]:
            remarks.append(plain(f"Only in the {name}: {', '.join(only)}."))
    found = _table("Two runs", remarks)
    for name in ("accuracy 1", "accuracy 2", "change", "tokens 1", "tokens 2", "change"):
        found.add_column(name, justify="right", no_wrap=True)
    for spec in shared:
        one, two = ours[spec], theirs[spec]
        interval = newcombe(
            one["accuracy"], Interval(*one["accuracy_ci"]), two["accuracy"], Interval(*two["accuracy_ci"])
        )
        change = f"{(two['accuracy'] - one['accuracy']) * 100:+.1f}"
        tokens = two["tokens_mean"] / one["tokens_mean"] - 1 if one["tokens_mean"] else None
        values = (
            Cell(percent(one["accuracy"]), _percents(one["accuracy_ci"])),
            Cell(percent(two["accuracy"]), _percents(two["accuracy_ci"])),
            Cell(change, _percents(interval, "+"), _tone(interval, 0, False)),
            Cell(number(one["tokens_mean"])),
            Cell(number(two["tokens_mean"])),
            Cell(percent(tokens, "+.1f")),
        )
        found.add_row(Text(plain(spec)), *map(_rich, values))
    return found


def _table(title: str, remarks: Sequence[str]) -> Table:
    found = Table(
        title=Text(title, style="bold"),
        caption=Text("\n".join(remarks), style="dim"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    found.add_column("method", overflow="fold", min_width=8)
    return found


def _rich(cell: Cell) -> Text:
    text = Text(cell.value, style=_STYLES[cell.tone])
    return text.append(f"\n{cell.detail}", style="dim not bold") if cell.detail else text
