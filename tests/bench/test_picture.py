"""The picture of a bench run is one, whatever the run holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_report import many, meta, record, run

from thrifty.bench.picture import _curves, _names, _points, draw_pareto
from thrifty.bench.statistics import summarise

PNG = b"\x89PNG\r\n\x1a\n"


def test_picture_is_a_png_of_the_promised_size(tmp_path: Path) -> None:
    records = [*many(5, ("cgrs", "a" * 90, "$x_{1}$", "d\x00\ud800")), record("p0", "cap(budget=3)")]
    summary, _ = run(tmp_path, records, caps={"cgrs": "cap(budget=3)"})
    draw_pareto(summary, tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    assert data.startswith(PNG)
    assert [int.from_bytes(data[i : i + 4], "big") for i in (16, 20)] == [1600, 1000]
    draw_pareto(summary, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == data


@pytest.mark.parametrize("records", [[], [record("a")], [record("a"), record("a", "same")]])
def test_picture_of_next_to_nothing(records: list[dict[str, Any]], tmp_path: Path) -> None:
    draw_pareto(summarise(records, meta("vanilla", "same")), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)


def test_a_method_with_several_options_is_a_curve_of_one_colour(tmp_path: Path) -> None:
    sweep = {"tldr(temperature=0.5)": 50, "tldr(temperature=0.9)": 90, "tldr(temperature=0.7)": 70, "tldr": 80}
    others = {"vanilla": 100, "cgrs+tldr(temperature=0.5)": 60, "cgrs": 85, "odd (": 20}
    records = [record("a", method, thinking=tokens) for method, tokens in {**others, **sweep}.items()]
    summary = summarise(records, meta(*others, *sweep))
    points = _points(summary)
    (curve,) = _curves(points)
    assert [point.name for point in curve] == sorted(sweep, key=lambda spec: sweep[spec])
    assert len({point.colour for point in curve}) == 1
    assert len({point.colour for point in points}) == 1 + len(others)
    draw_pareto(summary, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)
    whole = {name: name for name in (*others, "tldr", "tldr(temperature=0.5)")}
    assert _names(points) == whole | {f"tldr(temperature=0.{i})": f"temperature=0.{i}" for i in (7, 9)}
