"""Shapes of the trees that are drafted: which ranks of children are followed how far, whatever their tokens are."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from thrifty.errors import ThriftyError

DEEPEST = 20
"""Levels of a tree whose nodes nobody has counted."""
WIDEST = 10
"""Children of a node, as many as tokens are kept of a distribution."""

Path = tuple[int, ...]
"""A node of a tree: the rank of its ancestors and its own among their siblings."""


def likely(path: Path) -> float:
    """Return how likely a node is to be reached, before anything was measured: .8 a level, a tenth for each rank."""
    return 0.8 ** len(path) * 0.1 ** sum(path) if len(path) <= DEEPEST else 0.0


def best_nodes(value: Callable[[Path], float], count: int) -> list[Path]:
    """Return the most valuable nodes of a tree, the best first; before each its parent and the sibling before it.

    Args:
        value: of a node; one of value 0 is never taken.
        count: nodes at the most.
    """
    chosen: list[Path] = []
    heap: list[tuple[float, Path]] = [(-value((0,)), (0,))]
    while heap and len(chosen) < count:
        worth, path = heapq.heappop(heap)
        if not worth:
            continue
        chosen.append(path)
        following: list[Path] = [(*path, 0)] + [(*path[:-1], path[-1] + 1)] * (path[-1] + 1 < WIDEST)
        for node in following:
            heapq.heappush(heap, (-value(node), node))
    return chosen


class TreeShape:
    """Which ranks of which nodes are drafted.

    Args:
        paths: the nodes, in any order.

    Attributes:
        children: of the root (0) and each node, by rank. Nodes are numbered so that the first of all children come
            right behind each other: as long as they come true, their keys and values stay where they are.
        parents: of each node, 0 for the root and its children.
        depth: of the deepest.

    Raises:
        ThriftyError: a node without its parent or the sibling before it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        places = {path: i for i, path in enumerate([(), *sorted(paths)])}
        self.children: list[list[int]] = [[] for _ in places]
        self.parents = [0] * len(places)
        self.depth = max(map(len, places))
        for path, place in places.items():
            if not path:
                continue
            above = places.get(path[:-1])
            if above is None or len(self.children[above]) != path[-1]:
                raise ThriftyError(f"a tree's node {list(path)} lacks its parent or the sibling before it")
            self.children[above].append(place)
            self.parents[place] = above
