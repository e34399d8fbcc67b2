"""DELTA: a few layers choose pages of the cache at every step, and the layers behind them attend to those only."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.sampling import uniforms
from thrifty.errors import ThriftyError
from thrifty.methods.shared.attention import AttentionMethod, Watched
from thrifty.methods.tuning import Tuning
from thrifty.models.attention import AttentionPolicy, Reading, attention_probabilities, weighted
from thrifty.models.base import Model
from thrifty.models.cache import COLUMN_STEP
from thrifty.models.torch import TorchModel

Role = Literal["full", "delta", "sparse"]
SELECTORS = ("attention", "random")
RELEASED = (14 / 28, 22 / 28)
"""Where the release puts the Δ-layers behind the first one, as shares of the depth."""
STREAM = 8
"""Of the random numbers that rank pages for comparison."""


def roles_of(layers: int, warm_up: int, chosen: Sequence[int]) -> list[Role]:
    """Return the role of each layer; with 28, 2 and (2, 14, 22) five are full, and the Δ-layers are 2, 14 and 22.

    Args:
        layers: of the model.
        warm_up: layers at the beginning that attend to everything.
        chosen: further layers that do.
    """
    full = [layer < warm_up or layer in chosen for layer in range(layers)]
    # the release finds Δ-layers so: full, and what follows is not
    delta = [here and not behind for here, behind in zip(full, [*full[1:], True], strict=True)]
    return ["delta" if d else "full" if f else "sparse" for d, f in zip(delta, full, strict=True)]


def released_layers(layers: int, warm_up: int) -> tuple[int, ...]:
    """Return Δ-layers at the depths of the release, each with something sparse before and behind it.

    28 layers behind a warm-up of 2 have them at 2, 14 and 22; 6 at 2 and 4.

    Args:
        layers: of the model.
        warm_up: layers at the beginning that attend to everything.
    """
    chosen = [warm_up]
    for share in RELEASED:
        if chosen[-1] + 1 < (layer := int(share * layers)) < layers - 1:
            chosen.append(layer)
    return tuple(chosen)


def token_scores(probabilities: Tensor) -> Tensor:
    """Return the largest probability that any query head gives each token.

    Args:
        probabilities: of one query ``(rows, heads, tokens)``.

    Returns:
        ``(rows, tokens)``.
    """
    return probabilities.amax(1)


def page_scores(scores: Tensor, size: int) -> Tensor:
    """Return the sum of the scores of each page's tokens; the last page may be partial.

    .5 .1 .1 .6 .2 .1 in pages of 2 give .6 .7 .3.

    Args:
        scores: of the tokens ``(rows, tokens)``.
        size: tokens of a page.

    Returns:
        ``(rows, pages)``.
    """
    padded = torch.nn.functional.pad(scores, (0, -scores.shape[1] % size))
    return padded.view(len(scores), -1, size).sum(-1)


def select_pages(scores: Tensor, counts: Tensor, kept: Tensor, recent: int, slots: int) -> Tensor:
    """Return the pages that rows attend to: the last ones, and of the others those with the highest scores.

    Scores .6 .7 .3 with two kept, one of them recent, give pages 1 and 2; .5 .5 .1 give 0 and 2, for ties go to the
    earlier page.

    Args:
        scores: ``(rows, pages)``.
        counts: pages that each row has, int64 ``(rows,)``.
        kept: pages that each row keeps, at most as many as it has, int64 ``(rows,)``.
        recent: last pages that every row keeps.
        slots: columns of the result, at least the most that any row keeps.

    Returns:
        Page numbers, ascending, int64 ``(rows, slots)``; beyond what a row keeps a number that no row has.
    """
    pages = scores.shape[1]
    number = torch.arange(pages, device=scores.device)
    last, counts = number >= counts[:, None] - recent, counts[:, None]
    ranked = scores.nan_to_num(nan=torch.finfo(scores.dtype).min) - 1e-7 * number
    ranked = ranked.masked_fill(last, torch.inf).masked_fill(number >= counts, -torch.inf)
    chosen = ranked.topk(slots, dim=-1).indices
    rank = torch.arange(slots, device=scores.device)
    return chosen.masked_fill(rank >= kept[:, None], pages).sort(dim=-1).values


def place_layers(distances: Sequence[float], warm_up: int, count: int) -> tuple[int, ...]:
    """Choose Δ-layers: the first right after the warm-up, then those that differ most from the layer before them.

    They stand at least N / (2 count) layers apart, and never last, where nothing would follow. Distances 0 and 1
    between three layers, and 0 to a fourth, put one at 0 (no warm-up) and one at 2.

    Args:
        distances: 1 - cos between the maps of adjacent layers: the first number is that of layers 0 and 1.
        warm_up: layers at the beginning that attend to everything.
        count: Δ-layers wanted; fewer are found where there is no room.
    """
    layers = len(distances) + 1
    gap = layers / (2 * count)
    chosen = [warm_up]
    for layer in sorted(range(warm_up + 1, layers - 1), key=lambda layer: (-distances[layer - 1], layer)):
        if len(chosen) < count and all(abs(layer - other) >= gap for other in chosen):
            chosen.append(layer)
    return tuple(sorted(chosen))


class _DeltaPolicy(AttentionPolicy):
    def __init__(self, method: Delta, roles: Sequence[Role]) -> None:
        self.name, self.method, self.roles = method.slug, method, roles
        self.size = method.page

    def watches(self, newest: bool, frozen: bool) -> bool:
        return newest

    def kept(self, entries: int) -> int:
        """Return how many pages a row with so many entries attends to."""
        pages = -(-entries // self.size)
        return pages if pages <= self.method.start * self.method.pages else self.method.pages

    def attended(self, entries: int, layers: int) -> int:
        pages = -(-entries // self.size)
        dropped = pages - self.kept(entries)  # whole pages, for the last one is always kept
        return layers * entries - self.roles.count("sparse") * dropped * self.size

    def attend(
        self, reading: Reading, layer: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float
    ) -> Tensor | None:
        role = self.roles[layer]
        if layer == 0:
            reading.scratch = None
            longest = max(reading.stored)
            if self.kept(longest) * self.size < longest:
                pages = [self.kept(entries) for entries in reading.stored]
                reading.scratch = _Choice(max(pages), reading.lengths.new_tensor(pages))
        choice: _Choice | None = reading.scratch
        if choice is None or role == "full":
            return None
        if role == "delta" and self.method.selector == "random":
            self._choose(reading, choice, self._random(reading, layer), query.dtype)
            return None
        if role == "delta":
            probabilities = attention_probabilities(query, keys, mask, scaling)[:, :, :, 0]
            scores = page_scores(token_scores(probabilities.flatten(1, 2)), self.size)
            self._choose(reading, choice, scores, query.dtype)
            return weighted(probabilities, values)
        some_keys, some_values = reading.cache.layers[layer].pages(choice.index, self.size)
        grouped = query.reshape(len(query), keys.shape[1], -1, query.shape[3])  # query heads share what they attend to
        found = scaled_dot_product_attention(grouped, some_keys, some_values, attn_mask=choice.bias, scale=scaling)
        return found.flatten(1, 2)[:, :, None]

    def _choose(self, reading: Reading, choice: _Choice, scores: Tensor, dtype: torch.dtype) -> None:
        counts = (reading.lengths + self.size - 1) // self.size
        pages = select_pages(scores, counts, choice.kept, self.method.recent, choice.slots)
        tokens = pages[:, :, None] * self.size + torch.arange(self.size, device=pages.device)
        hidden = tokens.flatten(1) >= reading.lengths[:, None]
        choice.index = reading.cache.page_index(pages, self.size)
        choice.bias = torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, -torch.inf)[:, None, None]

    def _random(self, reading: Reading, layer: int) -> Tensor:
        pages = -(-max(reading.stored) // self.size)
        number = np.arange(pages, dtype=np.uint64)
        keys = np.array(reading.stored, dtype=np.uint64).repeat(pages)
        counters = np.tile(number + np.uint64(layer << 32), len(reading.stored))
        draws = torch.from_numpy(uniforms(keys, counters, STREAM)).view(-1, pages)
        return draws.to(reading.lengths.device)


@dataclass
class _Choice:
    """What rows attend to in a pass: how many pages, and once a Δ-layer has spoken, which."""

    slots: int
    kept: Tensor
    index: Tensor = dataclasses.field(init=False)
    bias: Tensor = dataclasses.field(init=False)


class _Maps(AttentionPolicy):
    """Measures how much the attention of each layer differs from that of the layer before."""

    name = "maps"

    def __init__(self, layers: int) -> None:
        self.distances = torch.zeros(layers - 1, dtype=torch.float64)
        self.steps = 0

    def watches(self, newest: bool, frozen: bool) -> bool:
        return newest and not frozen

    def observe(self, reading: Reading, layer: int, query: Tensor, keys: Tensor, mask: Tensor, scaling: float) -> None:
        probabilities = attention_probabilities(query[:, :, :1], keys, mask[:, :, :1], scaling)
        scores = token_scores(probabilities[:, :, :, 0].flatten(1, 2))
        if layer:
            similarity = torch.nn.functional.cosine_similarity(reading.scratch, scores, dim=-1)
            self.distances[layer - 1] += float((1 - similarity).sum())
        else:
            self.steps += len(scores)
        reading.scratch = scores


@dataclass(frozen=True, kw_only=True)
class Delta(AttentionMethod):
    """Let a few layers attend to everything and choose pages, to which alone the layers behind them attend.

    At every step a Δ-layer scores each token by the largest probability that any of its query heads gives it, and each
    page by the sum of its tokens. The sparse layers up to the next Δ-layer read the keys and values of the last
    pages and of those with the highest scores. Nothing is evicted: what is passed over now may be chosen later.
    Prompts, and drafts behind a row's newest token, attend to everything. FLOPs are counted as of full attention;
    traces tell the attended tokens.

    Source: DELTA: Dynamic Layer-Aware Token Attention for Efficient Long-Context Reasoning, arXiv 2510.09883;
    card ``delta``. Follows the release: roles, scores, selection, defaults. Reconstruction: Δ-layers without a
    calibration stand at the released depths (`released_layers`); the calibration takes the scores of tokens for a
    layer's map, and layers greedily by distance, N / (2 count) apart.

    Attributes:
        pages: K, pages that sparse layers attend to, the recent ones included.
        recent: L, last pages that are among them.
        page: P, tokens of a page; a power of two up to 64.
        warm_up: r, layers at the beginning that attend to everything.
        layers: further layers that do; those before a sparse one choose pages. None given: see above.
        calibration: path of what ``thrifty tune delta`` wrote; its layers are used instead.
        start: nothing is passed over up to this many times K pages.
        selector: ``attention``, or ``random`` pages beside the recent ones, for comparison.
    """

    slug: ClassVar[str] = "delta"
    pages: int = 64
    recent: int = 8
    page: int = 16
    warm_up: int = 2
    layers: tuple[int, ...] = ()
    calibration: str = ""
    start: float = 1.0
    selector: str = "attention"

    def __post_init__(self) -> None:
        if self.page < 1 or COLUMN_STEP % self.page:
            raise ThriftyError(f"delta: page must be a power of two up to {COLUMN_STEP}")
        if not 1 <= self.recent <= self.pages:
            raise ThriftyError("delta: recent must be at least 1 (the newest page is always read) and at most pages")
        if self.warm_up < 0 or self.start < 1:
            raise ThriftyError("delta: warm_up must be at least 0, start at least 1")
        if not all(isinstance(layer, int) and layer >= 0 for layer in self.layers):
            raise ThriftyError("delta: layers are numbers from 0, as layers=(2,14,22)")
        if self.layers and self.calibration:
            raise ThriftyError("delta: give layers or a calibration, not both")
        if self.selector not in SELECTORS:
            raise ThriftyError(f"delta: selector is one of {', '.join(SELECTORS)}")

    @functools.cached_property
    def _artefact(self) -> Artefact:
        return Artefact.load(self.calibration, self.slug)

    def roles(self, layers: int) -> list[Role]:
        """Return the role of each layer of a model.

        Raises:
            ThriftyError: there is no such layer, none would be sparse, or a sparse one would come first.
        """
        chosen = self.layers or released_layers(layers, self.warm_up)
        if self.calibration:
            if (made := self._artefact.values["warm_up"]) != self.warm_up:
                raise ThriftyError(f"delta: {self.calibration} was made with warm_up={made}: give the same")
            chosen = tuple(self._artefact.values["layers"])
        elif self.layers and max(self.layers) >= layers:
            raise ThriftyError(f"delta: the model has {layers} layers, 0 to {layers - 1}, and none is {max(chosen)}")
        roles = roles_of(layers, self.warm_up, chosen)
        if roles[0] == "sparse" or "sparse" not in roles:
            raise ThriftyError(
                f"delta: of {layers} layers the first must attend to everything and some must not: "
                f"give warm_up and layers, as warm_up=1,layers=(0,{layers // 2})"
            )
        return roles

    def check(self, model: Model) -> None:
        super().check(model)
        assert isinstance(model, TorchModel)
        if self.calibration:
            self._artefact.require(model)
        self.roles(model.layers)

    def attention(self, model: TorchModel) -> AttentionPolicy:
        return _DeltaPolicy(self, self.roles(model.layers))

    @classmethod
    def tune(cls, tuning: Tuning) -> Artefact:
        """Choose the Δ-layers of a model; the options are `Calibrating`."""
        options = tuning.read(Calibrating)
        layers = tuning.model.layers
        if options.warm_up >= layers - 1:
            raise ThriftyError(f"delta: behind {options.warm_up} layers of {layers} nothing is left to be sparse")
        maps = _Maps(layers)
        tuning.solve(Watched(policy=maps), tuning.problems(), what="attention maps")
        distances = [round(float(d) / max(maps.steps, 1), 6) for d in maps.distances]
        chosen = place_layers(distances, options.warm_up, options.count)
        values: dict[str, Any] = {"layers": list(chosen), "warm_up": options.warm_up}
        report = {
            "layers": ", ".join(map(str, chosen)),
            "roles": ", ".join(roles_of(layers, options.warm_up, chosen)),
            "steps": maps.steps,
            "distance_to_the_layer_before": {str(layer + 1): distance for layer, distance in enumerate(distances)},
            "warning": [f"room for {len(chosen)} of {options.count} layers"] * (len(chosen) < options.count),
        }
        return Artefact(cls.slug, identity(tuning.model), tuning.about(**dataclasses.asdict(options)), values, report)


@dataclass(frozen=True, kw_only=True)
class Calibrating:
    """How Δ-layers are chosen.

    Attributes:
        warm_up: layers at the beginning that attend to everything.
        count: Δ-layers wanted.
    """

    warm_up: int = 2
    count: int = 3

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.count < 1:
            raise ThriftyError("delta: warm_up must be at least 0, count at least 1")
