"""What a bench run shows at a glance: accuracy against tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from thrifty.bench.statistics import VANILLA, pareto_front
from thrifty.bench.table import Summary, heading, plain, shortened, size
from thrifty.errors import MissingExtra, ThriftyError
from thrifty.spec import parse_spec, split_specs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

_COLOURS = ("#0072B2", "#C44E00", "#00805F", "#B0478F", "#9A6B00", "#2A8FC7", "#6A3D9A", "#7A5C2E")


def draw_pareto(summary: Summary, path: Path | IO[bytes]) -> None:
    """Draw accuracy against tokens as a PNG of 1600 x 1000 pixels.

    Args:
        summary: of a run.
        path: where to write it.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401  # tells apart a missing package from a broken one
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra("matplotlib", "report") from error
    figure = Figure(figsize=(10, 6.25), dpi=160, facecolor="white")
    axes = figure.add_axes((0.08, 0.11, 0.89, 0.73))
    axes.set_xlabel("mean tokens of a response, all kinds counted", fontsize=11, color="#333333")
    axes.set_ylabel("accuracy", fontsize=11, color="#333333")
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors="#555555", length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom")
        axes.spines[side].set_color("#999999")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}%")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.text(0.08, 0.945, shortened(heading(summary), 70), fontsize=15, weight="bold", parse_math=False)
    figure.text(
        0.08, 0.905, f"{size(summary)}; bars are 95% intervals", fontsize=10.5, color="#555555", parse_math=False
    )
    points, caps = _points(summary), _caps(summary)
    with warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes; that is no news to a user
        warnings.filterwarnings("ignore", message="Glyph")
        if points:
            _draw_points(axes, points, caps)
            figure.draw_without_rendering()  # places for labels are measured in pixels
            _label(axes, points, caps)
        else:
            axes.text(0.5, 0.5, "no responses yet", transform=axes.transAxes, ha="center", color="#777777")
        figure.savefig(path, format="png", metadata={"Software": None})


class _Point(NamedTuple):
    name: str
    colour: str
    tokens: float
    accuracy: float  # percent, as are the ends of its interval
    low: float
    high: float

    @property
    def at(self) -> tuple[float, float]:
        return self.tokens, self.accuracy


def _method(spec: str) -> str:
    """Return a specification without its options; what is none stands for itself."""
    try:
        return "+".join(parse_spec(part)[0] for part in split_specs(spec, "+"))
    except ThriftyError:
        return spec


def _points(summary: Summary) -> list[_Point]:
    """Return a point for each method; those of one method with different options share a colour."""
    fresh = cycle(_COLOURS)
    colours = {VANILLA: "#222222"}
    for method in map(_method, summary["methods"]):
        if method not in colours:
            colours[method] = next(fresh)
    return [
        _Point(
            name=spec,
            colour=colours[_method(spec)],
            tokens=row["tokens_mean"],
            accuracy=100 * row["accuracy"],
            low=100 * row["accuracy_ci"][0],
            high=100 * row["accuracy_ci"][1],
        )
        for spec, row in summary["methods"].items()
        if row["n"]
    ]


def _curves(points: Sequence[_Point]) -> list[list[_Point]]:
    """Return the points of each method that was run with several options, fewest tokens first."""
    curves: dict[str, list[_Point]] = {}
    for point in sorted(points, key=lambda point: point.at):
        curves.setdefault(_method(point.name), []).append(point)
    return [curve for curve in curves.values() if len(curve) > 1]


def _names(points: Sequence[_Point]) -> dict[str, str]:
    """Return what to write at each point: a curve names its method once, and further on the options alone."""
    names = {point.name: point.name for point in points}
    for curve in _curves(points):
        for name in (point.name for point in curve[1:]):
            begin = f"{_method(name)}("
            names[name] = name[len(begin) : -1] if name.startswith(begin) else name
    return names


def _caps(summary: Summary) -> list[tuple[float, float]]:
    """Return tokens and accuracy of the plain caps; they end in vanilla, the cap that never closes."""
    rows = summary["methods"].values()
    caps = {
        (row["cap_tokens_mean"], 100 * row["cap_accuracy_at_same_tokens"])
        for row in rows
        if row["cap_tokens_mean"] is not None
    }
    return sorted(caps | {point.at for point in _points(summary) if caps and point.name == VANILLA})


def _draw_points(axes: Axes, points: Sequence[_Point], caps: Sequence[tuple[float, float]]) -> None:
    front = [points[i].at for i in pareto_front([point.at for point in points])]
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color="#222222", linewidth=6, alpha=0.08, zorder=1, label="Pareto front")
    if caps:
        axes.plot(
            *zip(*caps, strict=True), color="#9a9a9a", linestyle="--", linewidth=1.1, marker="o", markersize=6,
            markerfacecolor="white", zorder=2, label="plain cap on the thinking",
        )  # fmt: skip
    for curve in _curves(points):
        axes.plot(*zip(*(p.at for p in curve), strict=True), color=curve[0].colour, linewidth=1.6, alpha=0.6, zorder=3)
    for point in points:
        vanilla = point.name == VANILLA
        axes.errorbar(
            *point.at, yerr=[[max(0.0, point.accuracy - point.low)], [max(0.0, point.high - point.accuracy)]],
            color=point.colour, zorder=5 if vanilla else 4, marker="D" if vanilla else "o", markersize=9.5,
            markeredgecolor="white", markeredgewidth=1.2, elinewidth=1.2, capsize=0,
        )  # fmt: skip
    across = [point.tokens for point in points] + [tokens for tokens, _ in caps]
    margin = 0.09 * (max(across) - min(across)) or 0.1 * max(across) or 1.0
    axes.set_xlim(max(0.0, min(across) - margin), max(across) + margin)
    ends = [end for point in points for end in (point.low, point.high)] + [accuracy for _, accuracy in caps]
    axes.set_ylim(max(-2.0, min(ends) - 4), min(102.0, max(ends) + 4))
    if caps or len(front) > 1:  # above the axes, where no point can be
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=10, labelcolor="#555555"
        )


def _label(axes: Axes, points: Sequence[_Point], caps: Sequence[tuple[float, float]]) -> None:
    """Write each name at the nearest of some places around its point where it covers nothing."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    def around(tokens: float, low: float, high: float, reach: float) -> Bbox:
        (left, bottom), (right, top) = axes.transData.transform([(tokens, low), (tokens, high)])
        return Bbox.from_extents(left - reach, bottom - reach, right + reach, top + reach)

    taken = [around(p.tokens, p.accuracy, p.accuracy, 10) for p in points]
    taken += [around(p.tokens, p.low, p.high, 3) for p in points]
    taken += [around(tokens, accuracy, accuracy, 6) for tokens, accuracy in caps]
    for before, after in (pair for curve in _curves(points) for pair in pairwise(curve)):
        taken += [around(tokens, accuracy, accuracy, 3) for tokens, accuracy in np.linspace(before.at, after.at, 20)]
    inside = axes.get_window_extent()

    def cost(extent: Bbox) -> float:
        visible = Bbox.intersection(extent, inside)
        hidden = extent.width * extent.height - (visible.width * visible.height if visible else 0.0)
        covered = [Bbox.intersection(extent, other) for other in taken]
        return float(hidden + sum(b.width * b.height for b in covered if b))

    names = _names(points)
    for point in sorted(points, key=lambda p: p.at):
        places: list[tuple[float, float, float, str, str]] = [  # its anchor's accuracy, offset in points, alignment
            (point.accuracy, dx, dy * far, across, upright)
            for far in (1, 2, 3)
            for dx, across in ((9, "left"), (-9, "right"))
            for dy, upright in ((5, "bottom"), (-5, "top"))
        ]
        places[4:4] = [
            (end, dx, dy, across, upright)
            for dx, across in ((0, "center"), (12, "right"), (-12, "left"))
            for end, dy, upright in ((point.high, 3, "bottom"), (point.low, -4, "top"))
        ]
        name, halo = shortened(plain(names[point.name]), 36), [withStroke(linewidth=3, foreground="white")]
        label = axes.annotate(
            name, point.at, (0, 0), textcoords="offset points", fontsize=10.5, zorder=6,
            color=point.colour, weight="bold", parse_math=False, path_effects=halo,
        )  # fmt: skip

        def move(place: tuple[float, float, float, str, str], label: Annotation = label, at: _Point = point) -> Bbox:
            label.xy = (at.tokens, place[0])
            label.set(position=place[1:3], horizontalalignment=place[3], verticalalignment=place[4])
            return label.get_window_extent()

        taken.append(move(min(places, key=lambda place: cost(move(place)))))
