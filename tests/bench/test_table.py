"""What the tables of a bench run show."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from test_report import many, meta, record, run

from thrifty.bench.statistics import summarise
from thrifty.bench.table import _tone, compare, plain, table
from thrifty.errors import ThriftyError


def printed(rendered: Table, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(rendered)
    console.file.close()
    return console.export_text()


def test_table_shows_every_number_within_80_columns(tmp_path: Path) -> None:
    records = many(20, ("cgrs+first-try",)) + [record(f"p{i}", "cap(budget=3)", correct=i < 15) for i in range(20)]
    costs = {"cgrs+first-try": {"wall_seconds": 1234.0}}
    summary, _ = run(tmp_path, records, caps={"cgrs+first-try": "cap(budget=3)"}, costs=costs)
    text = printed(table(summary))
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if "cgrs+first-try" in line)
    assert row.split() == ["cgrs+first-try", "90.0%", "39.5", "32.5", "0.84", "-10.0", "75.0%", "23.48", "1,234s"]
    assert "m on t: 20 responses of each method, seed 0" in text
    assert "e3 is the accuracy (a fraction) squared for each thousand tokens generated" in " ".join(text.split())


def test_table_survives_what_is_missing_and_markup_in_names() -> None:
    summary = summarise([record("a", "x[bold](layers=[1,2])")], meta("x[bold](layers=[1,2])", "empty"))
    text = printed(table(summary), 120)
    assert "x[bold](layers=[1,2])" in text
    assert "empty is incomplete: 0 of 1 responses." in text


def test_table_tells_of_broken_budgets() -> None:
    over = record("a", "m") | {"events": {"budget": 3}}
    assert "m went beyond its budget in 1 responses." in printed(table(summarise([over], meta("m"))), 120)


@pytest.mark.parametrize(
    ("ends", "no_effect", "good_below", "tone"),
    [
        ([0.5, 0.9], 1, True, "good"),
        ([1.1, 1.2], 1, True, "bad"),
        ([0.5, 1.2], 1, True, ""),
        ([0.1, 0.2], 0, False, "good"),
        ([-0.2, -0.1], 0, False, "bad"),
        ([0.0, 0.0], 0, False, ""),
        (None, 0, False, ""),
    ],
)
def test_colours_only_where_the_interval_is_clear(
    ends: list[float] | None, no_effect: float, good_below: bool, tone: str
) -> None:
    assert _tone(ends, no_effect, good_below) == tone


def test_compare_shows_differences() -> None:
    first = summarise(many(20), meta("vanilla", "cgrs"))
    halved = [r | {"usage": {**r["usage"], "thinking": 0}} for r in many(20)]
    second = summarise([*halved, record("p0", "s1")], meta("vanilla", "cgrs", "s1", seed=9))
    text = printed(compare(first, second), 100)
    row = next(line for line in text.splitlines() if "vanilla" in line)
    assert row.split() == ["vanilla", "100.0%", "100.0%", "+0.0", "47.0", "7.0", "-85.1%"]
    assert "second: m on t, 20 responses of each method, seed 9." in text
    assert "Only in the second: s1." in text


def test_compare_refuses_runs_that_share_no_method() -> None:
    with pytest.raises(ThriftyError, match=r"no method in common: the first has vanilla; the second has cgrs"):
        compare(summarise([record("a")], meta("vanilla")), summarise([record("a", "cgrs")], meta("cgrs")))


def test_plain_leaves_ordinary_text_alone() -> None:
    ordinary = "a\tb\nπ ≤ 4 → 漢字 🙂"
    assert plain(ordinary) == ordinary
