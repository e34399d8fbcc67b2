"""What became of arms that are compared on the same questions: shares, and differences from full attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thrifty.bench.statistics import PerProblem, paired_bootstrap


def against_full(right: Mapping[str, Sequence[float]], counts: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Print and return the accuracy of each arm, against the arm ``full``.

    Args:
        right: of each arm, what was right: of every question or text, 0 to 1, in the same order.
        counts: of each arm, what was attended to, and what full attention would have been; zeros for all of it.
    """

    def tally(spec: str) -> PerProblem:
        found = np.array(right[spec], dtype=float)
        return PerProblem(tokens=np.ones_like(found), accuracy=found)

    arms: dict[str, Any] = {}
    for spec, its in right.items():
        against = paired_bootstrap(tally(spec), tally("full"))
        attended, full = counts[spec]
        arms[spec] = {
            "accuracy": round(sum(its) / len(its), 4),
            "difference": round(against.accuracy_difference, 4),
            "interval": [round(bound, 4) for bound in against.accuracy_difference_interval],
            "attended": round(attended / full, 4) if full else 1.0,
        }
        print(f"{spec:<46}{arms[spec]['accuracy']:>7.1%} right {arms[spec]['attended']:>7.1%} attended")
    return arms
