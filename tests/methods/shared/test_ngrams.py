"""The table of n-grams: what it averages, what it finds first, and what it forgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.methods.shared.ngrams import WIDTH, NGramTable, merge

A, B, C = 7, 8, 9


def learn(table: NGramTable, context: Sequence[int], distribution: Mapping[int, float], owner: str = "") -> None:
    tokens = np.array([list(distribution)], dtype=np.int64)
    table.observe([owner], [tuple(context)], tokens, np.array([list(distribution.values())]))


def found(table: NGramTable, context: Sequence[int], owner: str = "") -> dict[int, float] | None:
    where, tokens, probabilities = table.look_up([owner], [tuple(context)])
    if not where:
        return None
    pairs = zip(tokens[0].tolist(), probabilities[0].tolist(), strict=True)
    return {token: p for token, p in pairs if p > 0}


def test_worked_numbers_of_the_card() -> None:
    table = NGramTable((2,))
    learn(table, [1, 2], {A: 0.6, B: 0.4})
    learn(table, [1, 2], {A: 0.2, C: 0.8})
    assert found(table, [1, 2]) == pytest.approx({A: 0.4, B: 0.2, C: 0.4}, abs=1e-6)
    learn(table, [1, 2], {B: 1.0})
    assert found(table, [1, 2]) == pytest.approx({A: 0.2667, B: 0.4667, C: 0.2667}, abs=1e-4)


def test_several_distributions_of_one_round_go_in_one_after_the_other() -> None:
    table = NGramTable((2,))
    for distribution in ({A: 0.6, B: 0.4}, {A: 0.2, C: 0.8}, {B: 1.0}):  # nothing is looked up in between
        learn(table, [1, 2], distribution)
    assert found(table, [1, 2]) == pytest.approx({A: 0.2667, B: 0.4667, C: 0.2667}, abs=1e-4)


def test_the_longest_known_ngram_is_found_first() -> None:
    table = NGramTable((4, 3, 2))
    learn(table, [1, 2, 3, 4], {A: 1.0})
    learn(table, [9, 2, 3, 4], {B: 1.0})
    learn(table, [9, 9, 3, 4], {C: 1.0})
    assert found(table, [1, 2, 3, 4]) == {A: 1.0}
    assert found(table, [0, 2, 3, 4]) == pytest.approx({A: 0.5, B: 0.5})
    assert found(table, [0, 0, 3, 4]) == pytest.approx({A: 1 / 3, B: 1 / 3, C: 1 / 3}, abs=1e-6)
    assert found(table, [0, 0, 0, 4]) is None
    assert found(table, [1, 2, 3, 4], owner="another") is None


def test_a_context_shorter_than_the_ngrams_counts_once() -> None:
    table = NGramTable((4, 3, 2))
    learn(table, [1, 2], {A: 1.0})
    learn(table, [1, 2], {B: 1.0})
    assert found(table, [1, 2]) == pytest.approx({A: 0.5, B: 0.5})
    assert len(table) == 1


def test_ten_tokens_are_kept_and_sum_to_one_when_they_are_read() -> None:
    table = NGramTable((1,))
    learn(table, [1], {token: (20 - token) / 200 for token in range(WIDTH)})
    learn(table, [1], {100: 0.5, 101: 0.001})
    kept = found(table, [1])
    assert kept is not None
    assert len(kept) == WIDTH
    assert next(iter(kept)) == 100
    assert set(kept) == {100, *range(WIDTH - 1)}  # the least likely of both went
    assert sum(kept.values()) == pytest.approx(1.0)


@given(st.lists(st.dictionaries(st.integers(0, 5), st.floats(0.01, 1.0), min_size=1, max_size=4), max_size=6))
def test_an_average_is_the_mean_while_nothing_is_cut_off(distributions: list[dict[int, float]]) -> None:
    normal = [{t: w / sum(d.values()) for t, w in d.items()} for d in distributions]
    table = NGramTable((2,))
    for one in normal:
        learn(table, [1, 2], one)
    if normal:
        tokens = {t for d in normal for t in d}
        mean = {t: sum(d.get(t, 0.0) for d in normal) / len(normal) for t in tokens}
        assert found(table, [1, 2]) == pytest.approx(mean, abs=1e-5)


def test_merging_keeps_no_token_twice_and_none_without_weight() -> None:
    tokens, weights = merge(
        np.array([[A, B, -1]], dtype=np.int32),
        np.array([[0.7, 0.3, 0.0]]),
        np.array([1]),
        np.array([[B, C, -1]], dtype=np.int32),
        np.array([[1.0, 0.0, 0.0]]),
    )
    assert tokens.tolist() == [[B, A, -1]]
    assert weights.tolist() == [pytest.approx([0.65, 0.35, 0.0])]


def test_what_is_over_capacity_is_forgotten_the_oldest_owner_first() -> None:
    table = NGramTable((2,), capacity=8)
    for owner in ("first", "second"):
        for token in range(4):
            learn(table, [token, token], {A: 1.0}, owner)
        assert found(table, [3, 3], owner) == {A: 1.0}
    learn(table, [4, 4], {B: 1.0}, "second")
    assert len(table) == 5
    assert found(table, [3, 3], "first") is None
    assert found(table, [4, 4], "second") == {B: 1.0}
    for token in range(5, 40):
        learn(table, [token, token], {C: 1.0}, "second")
        assert len(table) <= 8
    assert found(table, [39, 39], "second") == {C: 1.0}
    assert found(table, [0, 0], "second") is None
    learn(table, [0, 0], {B: 1.0}, "second")
    assert found(table, [0, 0], "second") == {B: 1.0}, "nothing of what was forgotten is left in its place"
