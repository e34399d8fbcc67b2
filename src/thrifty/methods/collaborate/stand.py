"""STAND: draft what may come next from the distributions that n-grams were followed by, in all samples of a problem."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.controller import Drafter
from thrifty.decoding.draft import Draft
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import Keys, uniforms
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods.base import Method
from thrifty.methods.shared.candidates import sampling
from thrifty.methods.shared.ngrams import WIDTH, NGramTable, Weights
from thrifty.methods.shared.trees import Path, TreeShape, best_nodes, likely
from thrifty.methods.tuning import Tuning
from thrifty.models.base import Model
from thrifty.models.torch import TorchModel

STREAM = 6
"""Drafting draws from a stream of its own: what it draws must be independent of what accepts it."""
PAUSE = 32
"""Tokens that a row goes without drafts when they do not pay."""
MEMORY = 8
"""Drafts over which the running acceptance averages."""
WAITING = 64
"""Steps whose distributions are kept whole at the most."""
NOTHING = Draft([], [])


def drawn_order(probabilities: Weights, draws: Weights) -> npt.NDArray[np.int64]:
    """Return the order in which items are drawn without replacement: Gumbel-Top-K, log q - log(-log u) descending.

    Of q = (.7, .2, .1) the first two are drawn first, in this order, .7 * .2 / .3 = .4667 of the time.

    Args:
        probabilities: q ``(n, items)``; items of probability 0 come last.
        draws: u, uniform ``(n, items)``.
    """
    with np.errstate(divide="ignore"):
        scores = np.log(probabilities) - np.log(-np.log(np.maximum(draws, 1e-300)))
    return (-scores).argsort(1, kind="stable")


def foreseen(tokens: npt.NDArray[np.int32], probabilities: Weights, draws: Weights) -> npt.NDArray[np.int64]:
    """Return the column of the token that sampling would give if the model's distribution were the table's.

    Args:
        tokens: ``(n, items)``.
        probabilities: theirs ``(n, items)``.
        draws: with which the model will sample ``(n,)``.
    """
    rows = np.arange(len(tokens))
    order = tokens.argsort(1, kind="stable")
    cumulative = probabilities[rows[:, None], order].cumsum(1)
    place = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(1).clip(max=tokens.shape[1] - 1)
    chosen: npt.NDArray[np.int64] = order[rows, place]
    return chosen


@dataclass(slots=True)
class _Progress:
    """How a row's drafts fare: accepted tokens per drafted one, where the row drafts again, and its last draft."""

    rate: float
    resume: int = 0
    draft: Draft = NOTHING
    written: int = 0


class _Dice:
    """What rows draft by: the numbers that they will sample with, or others of their own; the likeliest if greedy.

    Args:
        rows: which.
        depth: levels of their trees.

    Attributes:
        sampled: which of them sample, bool ``(rows,)``.
    """

    def __init__(self, rows: Sequence[Row], depth: int) -> None:
        self.sampled = np.array([row.settings.temperature > 0 for row in rows])
        self._keys = np.array([row.key for row in rows], dtype=np.uint64)[:, None]
        self._written = np.array([len(row.ids) for row in rows], dtype=np.uint64)[:, None]
        # a token is sampled with the number of its place in the response
        ahead: Keys = np.add(self._written, np.arange(depth, dtype=np.uint64), dtype=np.uint64)
        self._draws = uniforms(np.broadcast_to(self._keys, ahead.shape), ahead)

    def foreseen(
        self, index: npt.NDArray[np.int64], depth: int, tokens: npt.NDArray[np.int32], q: Weights
    ) -> npt.NDArray[np.int64]:
        """Return the order in which tokens are drafted: the foreseen one first, then the likeliest ``(n, WIDTH)``.

        Args:
            index: of the rows whose drafts go on ``(n,)``.
            depth: of the level.
            tokens: that may follow ``(n, WIDTH)``.
            q: their probabilities ``(n, WIDTH)``.
        """
        first, sampled = foreseen(tokens, q, self._draws[index, depth]), self.sampled[index]
        scores = q.copy()
        scores[sampled, first[sampled]] = 2.0
        return (-scores).argsort(1, kind="stable")

    def drawn(self, index: npt.NDArray[np.int64], nodes: npt.NDArray[np.int64], q: Weights) -> npt.NDArray[np.int64]:
        """Return the order in which tokens are drawn, of greedy rows the likeliest first ``(n, WIDTH)``.

        Args:
            index: of the rows whose drafts go on ``(n,)``.
            nodes: of their trees, behind which they do ``(n,)``.
            q: probabilities of the tokens that may follow ``(n, WIDTH)``.
        """
        places = nodes[:, None] * 16 + np.arange(WIDTH)
        counters: Keys = (self._written[index] << np.uint64(20)) + places.astype(np.uint64)
        drawn = drawn_order(q, uniforms(np.broadcast_to(self._keys[index], counters.shape), counters, STREAM))
        return np.where(self.sampled[index][:, None], drawn, np.arange(WIDTH))


class TreeDrafter:
    """Drafts trees from a table of n-grams that it learns as rows are written.

    Args:
        method: its options.
    """

    def __init__(self, method: STAND) -> None:
        self.method = method
        self.shape = method.shape
        self.table = NGramTable(method.orders)
        self._seen: list[tuple[Sequence[Row], list[tuple[int, ...]], Tensor]] = []

    def _owner(self, row: Row) -> Hashable:
        return row.job.problem.id if self.method.share == "problem" else None

    def _tail(self, row: Row, written: int) -> tuple[int, ...]:
        span = self.table.span
        if written >= span:
            return tuple(row.ids[written - span : written])
        return tuple([*row.prompt_ids[-span:], *row.ids[:written]][-span:])

    def observe(self, rows: Sequence[Row], written: Sequence[int], probabilities: Tensor) -> None:
        tails = [self._tail(row, count) for row, count in zip(rows, written, strict=True)]
        self._seen.append((rows, tails, probabilities))
        if len(self._seen) >= WAITING:  # rows that read vectors never ask for drafts
            self._note()

    def _note(self) -> None:
        """Hand what was seen since the last pass to the table: the likeliest tokens are sought once for all of it."""
        if not self._seen:
            return
        rows, tails, probabilities = zip(*self._seen, strict=True)
        self._seen = []
        top = torch.cat(probabilities).topk(min(WIDTH, probabilities[0].shape[-1]))
        owners = [self._owner(row) for some in rows for row in some]
        self.table.observe(owners, [tail for some in tails for tail in some], *(t.cpu().numpy() for t in reversed(top)))

    def propose(self, rows: Sequence[Row]) -> list[Draft]:
        self._note()
        places = [i for i, row in enumerate(rows) if self._progress(row).resume <= len(row.ids)]
        drafts = [NOTHING] * len(rows)
        for i, draft in zip(places, self._grow([rows[i] for i in places]), strict=True):
            drafts[i] = draft
        for row, draft in zip(rows, drafts, strict=True):
            progress = row.state[self]
            progress.draft, progress.written = draft, len(row.ids)
        return drafts

    def accepted(self, row: Row, drafted: int, accepted: int) -> None:
        progress = row.state.get(self)
        if progress is None or not progress.draft or not drafted:
            return  # what a method forces is drafted as well, but not here
        progress.draft = NOTHING
        told = row.events["stand"]
        told["drafts"] += 1
        told["drafted"] += drafted
        told["accepted"] += accepted
        progress.rate += (accepted / drafted - progress.rate) / MEMORY
        if progress.rate < self.method.minimum:
            told["pauses"] += 1
            progress.rate, progress.resume = 2 * self.method.minimum, len(row.ids) + PAUSE

    def _progress(self, row: Row) -> _Progress:
        if self not in row.state:
            row.state[self] = _Progress(2 * self.method.minimum)
            row.events["stand"] = {"drafts": 0, "drafted": 0, "accepted": 0, "pauses": 0}
        progress: _Progress = row.state[self]
        return progress

    def _grow(self, rows: Sequence[Row]) -> list[Draft]:
        """Draft for some rows, a level of all their trees at a time."""
        shape, span = self.shape, self.table.span
        owners = [self._owner(row) for row in rows]
        dice = _Dice(rows, shape.depth)
        rejection = self.method.verification == "rejection"
        picked: list[dict[int, int]] = [{} for _ in rows]
        chances: list[dict[int, dict[int, float]]] = [{} for _ in rows]
        level = [(i, 0, self._tail(row, len(row.ids))) for i, row in enumerate(rows)]
        for depth in range(shape.depth):
            found, tokens, q = self.table.look_up([owners[i] for i, _, _ in level], [tail for _, _, tail in level])
            if not found:
                break
            level = [level[f] for f in found]
            index, nodes = (np.array([entry[k] for entry in level]) for k in (0, 1))
            order = dice.drawn(index, nodes, q) if rejection else dice.foreseen(index, depth, tokens, q)
            ordered = tokens[np.arange(len(level))[:, None], order].tolist()
            following = list[tuple[int, int, tuple[int, ...]]]()
            for k, (i, node, tail) in enumerate(level):
                for child, token in zip(shape.children[node], ordered[k], strict=False):
                    if token < 0:
                        break
                    picked[i][child] = token
                    if shape.children[child]:
                        following.append((i, child, (*tail, token)[-span:]))
                if rejection and dice.sampled[i]:
                    chances[i][node] = {t: p for t, p in zip(tokens[k].tolist(), q[k].tolist(), strict=True) if p > 0}
            level = following
        return [self._draft(*grown) for grown in zip(picked, chances, strict=True)]

    def _draft(self, picked: dict[int, int], chances: dict[int, dict[int, float]]) -> Draft:
        nodes = sorted(picked)
        places = {node: place for place, node in enumerate(nodes)} | {0: -1}
        parents = [places[self.shape.parents[node]] for node in nodes]
        return Draft([picked[node] for node in nodes], parents, {places[node]: q for node, q in chances.items()})


@dataclass(frozen=True, kw_only=True)
class STAND(Method):
    """Write several tokens in a pass: what n-grams were followed by is drafted as a tree and read at once.

    A table keeps, for the last 4, 3 and 2 tokens, the running average of the ten likeliest tokens' probabilities that
    the model gave there, in every sample of the problem. Drafts follow it, and the response is what it would have been
    without: with ``match`` token for token, with ``rejection`` in distribution. It composes with whatever steers
    (``cgrs+stand``) and whatever samples (``majority(samples=8)+stand``), and gains most from several samples.
    ``events["stand"]`` counts drafts, drafted and accepted tokens, and the pauses of a row where they did not pay.

    Source: Accelerated Test-Time Scaling with Model-Free Speculative Sampling, arXiv 2506.04708; card ``stand``.
    Follows the paper. Reconstruction, for it does not say: the rule of ``rejection`` (the one of several candidates
    drawn without replacement), that n-grams end before the token that they predict, and that a problem's table is its
    own. Not of the paper: ``match``, which foresees the token by the number that the model will sample with, after
    Coupling without Communication and Drafter-Invariant Speculative Decoding, arXiv 2408.07978; and the pauses.

    Attributes:
        verification: ``match`` keeps the model's own samples, whatever was drafted, so that neither the batch nor an
            interruption changes a token. ``rejection`` is the paper's: Gumbel-Top-K drafts, accepted with probability
            min(1, p/q); a little more of them is, but samples then depend on what the others had written before.
            Greedy responses are the same with both.
        share: whose responses one table serves: those of a ``problem``, or of the whole ``run``.
        nodes: of the tree, 0 for none at all. The paper's 80 suit a GPU, where a pass over them costs little more
            than one over a single token; where they cost in proportion, few pay.
        tree: path of what ``thrifty tune stand`` wrote; its best nodes are used. Any tree suits any model.
        orders: lengths of the n-grams, in the order in which they are tried.
        minimum: accepted tokens per drafted one below which a row pauses its drafts for a while.
    """

    slug: ClassVar[str] = "stand"
    needs: ClassVar[Need] = Need.LOGITS | Need.KV
    thinks: ClassVar[bool] = False
    verification: str = "match"
    share: str = "problem"
    nodes: int = 4
    tree: str = ""
    orders: tuple[int, ...] = (4, 3, 2)
    minimum: float = 0.15

    def __post_init__(self) -> None:
        for name, allowed in (("verification", ("match", "rejection")), ("share", ("problem", "run"))):
            if getattr(self, name) not in allowed:
                raise UnknownName(f"{name} of stand", getattr(self, name), allowed)
        if not 0 <= self.nodes <= 4096:
            raise ThriftyError("stand: nodes must be between 0 and 4096")
        if not self.orders or not all(isinstance(n, int) and 1 <= n <= 64 for n in self.orders):
            raise ThriftyError("stand: orders must be lengths of n-grams, as orders=(4,3,2)")
        if not 0 <= self.minimum < 1:
            raise ThriftyError("stand: minimum must be at least 0 and below 1")

    @functools.cached_property
    def shape(self) -> TreeShape:
        """The tree in use."""
        if not self.tree:
            return TreeShape(best_nodes(likely, self.nodes))
        ranking = Artefact.load(self.tree, self.slug).values["tree"]
        return TreeShape([tuple(path) for path in ranking[: self.nodes]])

    def check(self, model: Model) -> None:
        super().check(model)
        _ = self.shape

    def drafter(self, model: TorchModel) -> Drafter | None:
        return TreeDrafter(self) if self.nodes else None

    @classmethod
    def tune(cls, tuning: Tuning) -> Artefact:
        """Find the nodes that are accepted most often, out of a large tree; the options are those of `Search`."""
        search = tuning.read(Search)
        tuning = replace(tuning, settings=sampling(tuning.settings, search.samples, search.temperature))
        tuning.solve(search, tuning.problems(), search.samples, what="drafting")
        counts, drafts = search.counting.counts, search.counting.drafts
        ranking = best_nodes(lambda path: counts[path], search.nodes)
        if not ranking:
            raise ThriftyError("stand: no drafted token was accepted: tune with more samples, or on other problems")
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if size < len(ranking)]
        report = {
            "drafts": drafts,
            "tokens_per_drafting_pass": {
                f"{size} nodes": {
                    "tuned": _tokens_per_pass(ranking[:size], counts, drafts),
                    "as given": _tokens_per_pass(best_nodes(likely, size), counts, drafts),
                }
                for size in [*sizes, len(ranking)]
            },
        }
        made_with = tuning.about(**asdict(search))
        return Artefact(cls.slug, identity(tuning.model), made_with, {"tree": [list(path) for path in ranking]}, report)


def _tokens_per_pass(paths: Sequence[Path], counts: Counter[Path], drafts: int) -> float:
    return round(1 + sum(counts[path] for path in paths) / drafts, 4)


class _CountingDrafter(TreeDrafter):
    """Counts how often each node is accepted."""

    def __init__(self, method: STAND) -> None:
        super().__init__(method)
        self.counts: Counter[Path] = Counter()
        self.drafts = 0

    def accepted(self, row: Row, drafted: int, accepted: int) -> None:
        progress = row.state.get(self)
        if progress is not None and progress.draft:
            self.drafts += 1
            node, path = -1, Path()
            for token in row.ids[progress.written : progress.written + accepted]:
                siblings = progress.draft.children.get(node, {})
                if token not in siblings:
                    break
                path = (*path, list(siblings).index(token))
                node = siblings[token]
                self.counts[path] += 1
        super().accepted(row, drafted, accepted)


@dataclass(frozen=True, kw_only=True)
class Search(STAND):
    """Options of ``thrifty tune stand``: those of the method, for the tree that the search begins with, and its runs.

    Attributes:
        nodes: of the tree that the search begins with; the paper's 625 take a GPU.
        minimum: as for the method; 0 counts every draft.
        samples: responses to each problem, which share a table.
        temperature: of the samples where the run is greedy, which would make them all alike.
    """

    nodes: int = 64
    minimum: float = 0.0
    samples: int = 4
    temperature: float = 0.6

    @functools.cached_property
    def counting(self) -> _CountingDrafter:
        """The drafter that counts, the same for all problems."""
        return _CountingDrafter(self)

    def drafter(self, model: TorchModel) -> Drafter | None:
        return self.counting
