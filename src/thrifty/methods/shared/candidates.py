"""Candidates: sample several responses to one problem, and make the trace of the one that is chosen."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.decoding.flow import conclude
from thrifty.decoding.row import Row
from thrifty.methods.base import Stage
from thrifty.models.base import Settings
from thrifty.traces.trace import Trace


def sampling(settings: Settings, samples: int, temperature: float) -> Settings:
    """Return settings under which samples differ: a temperature where several are drawn and the run is greedy."""
    greedy = samples > 1 and settings.temperature == 0
    return settings.with_(temperature=temperature) if greedy else settings


def answers_of(rows: Sequence[Row]) -> list[str | None]:
    """Return the answers of finished rows, None where a row has none."""
    return [row.trace("").answer for row in rows]


def choose(stage: Stage, slug: str, rows: Sequence[Row], index: int | None, events: dict[str, object]) -> Trace:
    """Return the trace of one of the candidates, with the account of all.

    Args:
        stage: of the flow.
        slug: of the flow's method, under which its events stand.
        rows: the candidates, finished.
        index: of the chosen one, None if there is no reason to choose any: then it is the first.
        events: what to tell reports.
    """
    chosen = index or 0
    others = [row for i, row in enumerate(rows) if i != chosen]
    noted = {**events, "samples": len(rows), "chosen": chosen}
    return conclude(rows[chosen], stage.method, [(row, "sample") for row in others], {slug: noted})
