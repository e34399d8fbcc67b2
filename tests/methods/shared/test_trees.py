"""Shapes of trees: closed, numbered so that the first children lie behind each other, and made of the best nodes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.errors import ThriftyError
from thrifty.methods.shared.trees import DEEPEST, Path, TreeShape, best_nodes, likely


def test_nodes_are_numbered_along_the_first_children() -> None:
    shape = TreeShape([(1,), (0, 1), (0,), (0, 0), (1, 0), (0, 0, 0)])
    # root 0; 0: 1, 0-0: 2, 0-0-0: 3, 0-1: 4, 1: 5, 1-0: 6
    assert shape.children == [[1, 5], [2, 4], [3], [], [], [6], []]
    assert shape.parents == [0, 0, 1, 2, 1, 0, 5]
    assert shape.depth == 3


@pytest.mark.parametrize("paths", [[(0, 0)], [(1,)], [(0,), (0, 2), (0, 0)]])
def test_a_tree_with_gaps_is_refused(paths: list[Path]) -> None:
    with pytest.raises(ThriftyError, match="lacks its parent or the sibling"):
        TreeShape(paths)


def test_no_nodes_are_a_tree_as_well() -> None:
    assert TreeShape([]).depth == 0


@given(st.integers(0, 200))
def test_the_likely_tree_is_closed_and_grows_by_its_best_node(count: int) -> None:
    nodes = best_nodes(likely, count)
    assert len(nodes) == count
    assert TreeShape(nodes).depth <= DEEPEST
    assert nodes == best_nodes(likely, 200)[:count]
    assert [likely(node) for node in nodes] == sorted(map(likely, nodes), reverse=True)


def test_the_best_nodes_bring_along_what_leads_to_them() -> None:
    counts = {(0,): 5, (0, 0): 2, (1,): 9, (1, 0): 8, (1, 0, 0): 7}
    nodes = best_nodes(lambda path: counts.get(path, 0), 10)
    assert nodes == [(0,), (1,), (1, 0), (1, 0, 0), (0, 0)]  # the first sibling stands before the better second
    assert best_nodes(Counter[Path]().__getitem__, 10) == []
