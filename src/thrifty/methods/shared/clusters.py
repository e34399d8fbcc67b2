"""Clusters of short texts, without any randomness: vectors of character n-grams or of a sentence model, k-means."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from thrifty.errors import ThriftyError

DIMENSIONS = 512
MOST_ROUNDS = 50


@dataclass(frozen=True)
class Cluster:
    """Some of the texts.

    Attributes:
        members: their indices.
        centre: the index of the one nearest to the centroid, the earliest of several.
    """

    members: tuple[int, ...]
    centre: int


def ngram_vectors(texts: Sequence[str], n: int = 3) -> Tensor:
    """Return texts as counts of their character n-grams, hashed into `DIMENSIONS` places, of length 1.

    Args:
        texts: any texts; case and runs of blanks do not count.
        n: characters of an n-gram.

    Returns:
        float64 ``(texts, DIMENSIONS)``; an empty text is 0.
    """
    vectors = torch.zeros(len(texts), DIMENSIONS, dtype=torch.float64)
    for vector, text in zip(vectors, texts, strict=True):
        padded = f" {' '.join(text.casefold().split())} "
        for i in range(len(padded) - n + 1):
            vector[crc32(padded[i : i + n].encode("utf-8", "surrogatepass")) % DIMENSIONS] += 1
    return torch.nn.functional.normalize(vectors, dim=-1)


class SentenceModel:
    """A Hugging Face encoder whose last states, averaged over the tokens, stand for a text.

    Args:
        name: a folder or a hub id.

    Attributes:
        parameters: of the model.

    Raises:
        ThriftyError: it cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
            self._network: Any = AutoModel.from_pretrained(name).eval()
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ThriftyError(
                f"no sentence model {name!r}: give the folder of one ({error})".splitlines()[0]
            ) from error
        self.parameters = sum(p.numel() for p in self._network.parameters())

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Return the vectors of length 1 ``(texts, hidden)`` and how many tokens the model read."""
        batch = self._tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True)
        mask = batch["attention_mask"]
        states = self._network(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return torch.nn.functional.normalize(means.double(), dim=-1), int(mask.sum())


sentence_model = functools.lru_cache(maxsize=2)(SentenceModel)
"""`SentenceModel`, loaded once for all problems."""


def k_means(vectors: Tensor, count: int) -> list[Cluster]:
    """Group vectors around centroids.

    The first centroid is the vector nearest to the mean, each further one the vector farthest from those before.
    Ties go to the earliest, so that the result is a function of the vectors.

    Args:
        vectors: ``(items, dimensions)``, at least one.
        count: clusters wanted; fewer where the items do not differ enough.

    Returns:
        The clusters, none empty, by their first members.
    """
    first = _distances(vectors, vectors.mean(0, keepdim=True))[:, 0].argmin()
    centroids = vectors[first][None]
    while len(centroids) < count:
        nearest = _distances(vectors, centroids).amin(1)
        if nearest.max() <= 1e-12:
            break
        centroids = torch.cat([centroids, vectors[nearest.argmax()][None]])
    owner = _distances(vectors, centroids).argmin(1)
    for _ in range(MOST_ROUNDS):
        present = torch.tensor(sorted(set(owner.tolist())))
        centroids = torch.stack([vectors[owner == i].mean(0) for i in present])
        moved = _distances(vectors, centroids).argmin(1)
        if torch.equal(present[moved], owner):
            break
        owner = moved
    clusters = []
    for i in set(owner.tolist()):
        members = (owner == i).nonzero()[:, 0]
        own = vectors[members]
        centre = members[_distances(own, own.mean(0, keepdim=True))[:, 0].argmin()]
        clusters.append(Cluster(tuple(members.tolist()), int(centre)))
    return sorted(clusters, key=lambda cluster: cluster.members)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances ``(len(a), len(b))``, each the same whatever stands beside it."""
    return ((a[:, None] - b[None]) ** 2).sum(-1)
