"""Terminal loops: a suffix of tokens that only repeats itself."""

from __future__ import annotations

from collections.abc import Sequence


def repeats(ids: Sequence[object], longest: int = 96, least: int = 4, span: int = 64) -> bool:
    """Tell whether a sequence ends in a loop.

    Args:
        ids: token ids, or words.
        longest: the longest period that is looked for, in tokens.
        least: how many periods must stand in a row.
        span: how many tokens they must cover at least; short periods must repeat more often.

    Returns:
        Whether the last ``max(span, least * period)`` tokens have a period of at most ``longest``.
    """
    for period in range(1, longest + 1):
        covered = max(span, least * period)
        if covered > len(ids):  # and longer periods need no fewer
            return False
        # cheap first: nearly all periods fail at the last token
        if ids[-1] != ids[-1 - period]:
            continue
        tail = ids[len(ids) - covered :]
        if tail[period:] == tail[:-period]:
            return True
    return False
