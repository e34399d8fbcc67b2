"""Clusters: alike texts together, the same whatever the order of work, no randomness."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.errors import ThriftyError
from thrifty.methods.shared.clusters import SentenceModel, k_means, ngram_vectors
from thrifty.models import embedded_folder

TEXTS = [
    "Add the numbers one by one.",
    "Multiply each digit, then sum up the rows.",
    "Add all the numbers, one by one.",
    "add the numbers  one by one",
    "Multiply each digit and sum up the rows.",
]


def test_texts_that_are_alike_share_a_cluster_with_the_middle_one_as_its_centre() -> None:
    clusters = k_means(ngram_vectors(TEXTS), 2)
    assert [cluster.members for cluster in clusters] == [(0, 2, 3), (1, 4)]
    assert clusters[0].centre == 0  # the other two differ from it less than from each other
    assert k_means(ngram_vectors(TEXTS), 1)[0].members == (0, 1, 2, 3, 4)


def test_case_and_blanks_do_not_count() -> None:
    vectors = ngram_vectors(["Go  on.", "go on.", "", "Stop."])
    assert torch.equal(vectors[0], vectors[1])
    assert vectors.norm(dim=-1).tolist() == pytest.approx([1, 1, 0, 1])


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=12), st.integers(1, 5))
def test_clusters_share_out_all_items(points: list[tuple[int, int]], count: int) -> None:
    vectors = torch.tensor(points, dtype=torch.float64)
    clusters = k_means(vectors, count)
    assert sorted(i for cluster in clusters for i in cluster.members) == list(range(len(points)))
    assert len(clusters) <= min(count, len(set(points)))
    for cluster in clusters:
        assert cluster.centre in cluster.members
        own = vectors[list(cluster.members)]
        far = ((own - own.mean(0)) ** 2).sum(-1)
        assert float(((vectors[cluster.centre] - own.mean(0)) ** 2).sum()) <= float(far.min()) + 1e-9


def test_points_far_apart_end_up_apart() -> None:
    vectors = torch.tensor([[0.0], [10.0], [0.1], [20.0], [10.1]])
    assert [cluster.members for cluster in k_means(vectors, 3)] == [(0, 2), (1, 4), (3,)]


def test_a_sentence_model_embeds_each_text_by_itself_and_tells_its_tokens() -> None:
    model = SentenceModel(str(embedded_folder("pebble")))
    vectors, tokens = model.vectors(TEXTS)
    (alone,), few = model.vectors(TEXTS[1:2])
    assert torch.allclose(vectors[1], alone, atol=1e-5)
    assert vectors.norm(dim=-1).tolist() == pytest.approx([1.0] * 5)
    assert 0 < few < tokens
    assert model.parameters > 1_000_000


def test_a_sentence_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ThriftyError, match="no sentence model 'nowhere/at-all'"):
        SentenceModel("nowhere/at-all")
