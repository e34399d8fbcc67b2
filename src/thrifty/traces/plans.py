r"""Plans that come before their execution: taking the two apart, and telling how well they fit together.

The format is that of Explore-Execute Chain (arXiv 2509.23946): a numbered plan between ``<EXPLORATION>`` and
``</EXPLORATION>``, then ``<EXECUTION>`` and numbered steps with the work.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from thrifty.traces.answers import boxed, extract_candidates

EXPLORATION = ("<EXPLORATION>", "</EXPLORATION>")
EXECUTION = ("<EXECUTION>", "</EXECUTION>")
THRESHOLD = 0.3
"""Share of the shorter title's words above which two titles mean the same step (the release's value)."""

_TITLE = re.compile(r"^[ \t*#]{0,8}\d{1,3}\.(?!\d)[ \t*]*(\S[^\n]*)", re.MULTILINE)


class Phases(NamedTuple):
    """The two parts of a response, markers removed."""

    plan: str
    execution: str


def split_phases(text: str) -> Phases:
    """Split a response at its first ``<EXECUTION>``; without one all of it is plan. Other markers are dropped.

    Args:
        text: the response, with markers missing or repeated as models have it.
    """
    parts = text.partition(EXECUTION[0])
    plan, execution = parts[0], parts[2]
    for marker in (*EXPLORATION, *EXECUTION):
        plan, execution = plan.replace(marker, ""), execution.replace(marker, "")
    return Phases(plan.strip(), execution.strip())


def titles(text: str) -> list[str]:
    """Return the titles of numbered steps: ``1. **Factor** it`` gives ``Factor it``.

    Args:
        text: a plan or an execution; lines without a number are passed over.
    """
    return [match[1].replace("*", "").strip() for match in _TITLE.finditer(text)]


def lcs(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel, so that long plans cost little: a bit of ``row`` is zero where the subsequence grows.

    Args:
        a: words, or a string for its characters.
        b: likewise.
    """
    places: dict[Hashable, int] = {}
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    everything = row = (1 << len(a)) - 1
    for item in b:
        kept = row & places.get(item, 0)
        row = ((row + kept) | (row - kept)) & everything
    return len(a) - row.bit_count()


def similarity(a: str, b: str) -> float:
    """Return the longest common subsequence of characters over the length of the longer text; 1 for two empty ones."""
    return lcs(a, b) / max(len(a), len(b)) if a or b else 1.0


def same_step(title: str, other: str, minimum_words: int = 1) -> bool:
    """Tell whether a planned title is carried out under another: it occurs in it, or they share enough words.

    "solve for x" and "we solve x" share 2 words of 3, which is more than 0.3 of the shorter.

    Args:
        title: of a planned step.
        other: of a step of the execution.
        minimum_words: of the shorter title for shared words to count; with the release's 1 a title of one word fits
            any that has it.
    """
    if title in other:
        return True
    ours, theirs = title.split(), other.split()
    shorter = min(len(ours), len(theirs))
    return shorter >= max(1, minimum_words) and lcs(ours, theirs) / shorter > THRESHOLD


def alignment(plan: str, execution: str, minimum_words: int = 1) -> float:
    """Return the share of the planned titles that the execution carries out, 0 for a plan without any.

    Planned "factor the number", "count divisors", executed "factor the number fully", "add terms": 0.5.

    Args:
        plan: the plan.
        execution: what followed it; one without numbered lines scores 0.
        minimum_words: see `same_step`.
    """
    planned, done = titles(plan), titles(execution)
    matched = sum(any(same_step(title, other, minimum_words) for other in done) for title in planned)
    return matched / max(len(planned), 1)


def states_answer(plan: str) -> bool:
    """Tell whether a plan gives an answer away: it has a box, or a line that states one."""
    return bool(boxed(plan)) or any(extract_candidates(line) is not None for line in plan.splitlines())
