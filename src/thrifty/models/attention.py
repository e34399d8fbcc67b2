"""What a model's layers attend to and keep: the one hook into the attention of Hugging Face models.

A policy sees what every layer attends to, may say what the newest token of each row gets, and may evict entries of
the cache. While none is at work, models run as they are.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from thrifty.errors import ThriftyError
from thrifty.models.cache import RowCache
from thrifty.models.torch import TorchModel

IMPLEMENTATION = "thrifty"
"""The name under which transformers knows the hook."""
FUSED = "sdpa"
"""The attention that models have, and that they keep wherever a policy leaves it to them."""


@dataclass
class Reading:
    """One pass over some rows, as a policy sees it.

    Attributes:
        cache: of the rows; the pass's own keys and values are stored when a layer attends.
        lengths: entries that each row holds, its first new one included, int64 ``(rows,)``.
        stored: the same as plain numbers.
        steps: number of the first new token among those of the response, from 1; int64 ``(rows,)``.
        time: new tokens of each row, padding counted.
        newest: whether the first new token of each row is its newest one, as it is at every step of decoding; what
            stands behind it are drafts. Else the new tokens are a prompt, or a text that was put in.
        counts: new tokens of each row, int64 ``(rows,)``; None for as many as there are in the pass. Behind them
            stands padding.
        seen: by layer, the attention of each new token ``(rows, kv heads, time, columns)``, where drafts need it.
        scratch: what a layer hands on to the later ones.
    """

    cache: RowCache
    lengths: Tensor
    stored: Sequence[int]
    steps: Tensor
    time: int
    newest: bool
    counts: Tensor | None = None
    seen: dict[int, Tensor] = field(default_factory=dict)
    scratch: Any = None


class AttentionPolicy:
    """Decides what rows attend to and what they keep. Override only what is needed.

    One object serves many rows, and remembers nothing of them: what it notes of an entry stands beside the entry
    in the cache, and moves with it.

    Attributes:
        name: under which traces tell what it did.
        marks: numbers that it notes beside every entry.
    """

    name: str = "attention"
    marks: int = 0

    def watches(self, newest: bool, frozen: bool) -> bool:
        """Tell whether the layers of a pass are to be hooked.

        Args:
            newest: see `Reading`.
            frozen: whether the rows are copies that only attend, as those of a probe.
        """
        return False

    def attend(
        self, reading: Reading, layer: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float
    ) -> Tensor | None:
        """Return what the newest tokens get, None for what full attention gives them.

        Args:
            reading: the pass.
            layer: which, from 0.
            query: of the newest tokens ``(rows, heads, 1, head_dim)``.
            keys: all stored ones ``(rows, kv heads, columns, head_dim)``.
            values: likewise.
            mask: which columns belong to the row, bool ``(rows or 1, 1, 1, columns)``.
            scaling: of the logits.

        Returns:
            ``(rows, heads, 1, head_dim)``.
        """
        return None

    def observe(self, reading: Reading, layer: int, query: Tensor, keys: Tensor, mask: Tensor, scaling: float) -> None:
        """See what all tokens of a pass attend to; see `attend`, but for any number of tokens."""

    def updated(self, marks: Tensor, attention: Tensor, steps: Tensor) -> Tensor:
        """Return the marks of entries once a token has attended to them.

        Args:
            marks: before ``(rows, kv heads, columns, marks)``.
            attention: as `observe` keeps it in `Reading.seen` ``(rows, kv heads, columns)``.
            steps: the token's number in the response ``(rows,)``.
        """
        return marks

    def fresh(self, steps: Tensor) -> Tensor:
        """Return the marks of new entries ``(rows, time, marks)``.

        Args:
            steps: numbers of their tokens in the response ``(rows, time)``; 0 for those of a prompt.
        """
        return steps.new_zeros(*steps.shape, self.marks)

    def attended(self, entries: int, layers: int) -> int:
        """Return what a newest token attends to, summed over the layers.

        Args:
            entries: that its row holds, itself included.
            layers: of the model.
        """
        return layers * entries

    def keep(self, stored: int, step: int, prompt: int) -> int:
        """Return how many entries a row keeps after a step.

        Args:
            stored: entries that it holds.
            step: tokens of the response that it has read.
            prompt: tokens that it read before.
        """
        return stored

    def choose(self, layer: int, marks: Tensor, steps: Tensor, prompts: Tensor, keep: int) -> Tensor:
        """Return which entries some rows keep in one layer.

        Args:
            layer: which, from 0.
            marks: ``(rows, kv heads, stored, marks)``.
            steps: tokens of the response that each row has read, int64 ``(rows,)``.
            prompts: tokens that it read before, int64 ``(rows,)``.
            keep: entries to keep.

        Returns:
            Columns, ascending, int64 ``(rows, kv heads, keep)``.
        """
        raise NotImplementedError

    def account(self, marks: Sequence[Tensor]) -> dict[str, Any]:
        """Return what the trace of a finished row should say beside what all policies say.

        Args:
            marks: of its entries, for each layer ``(kv heads, stored, marks)``.
        """
        return {}


def attention_probabilities(query: Tensor, keys: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Return what each query head attends to, in float32 or better.

    Args:
        query: ``(rows, heads, time, head_dim)``.
        keys: ``(rows, kv heads, columns, head_dim)``.
        mask: bool ``(rows or 1, 1, time, columns)``.
        scaling: of the logits.

    Returns:
        ``(rows, kv heads, heads of a group, time, columns)``.
    """
    rows, heads, time, width = query.shape
    groups, columns = keys.shape[1:3]
    logits = query.reshape(rows, groups, -1, width) @ keys.transpose(2, 3)
    logits = logits.view(rows, groups, heads // groups, time, columns) * scaling
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.softmax(logits.masked_fill(~mask[:, :, None], -torch.inf), dim=-1, dtype=dtype)


def weighted(probabilities: Tensor, values: Tensor) -> Tensor:
    """Return the output of attention for one token of each row ``(rows, heads, 1, head_dim)``.

    Args:
        probabilities: ``(rows, kv heads, heads of a group, columns)``.
        values: ``(rows, kv heads, columns, head_dim)``.
    """
    return (probabilities.to(values.dtype) @ values).flatten(1, 2)[:, :, None]


def require_hook(model: TorchModel, method: str) -> None:
    """Refuse a model into whose attention the hook does not reach.

    Raises:
        ThriftyError: its layers attend in a way of their own, or only to near positions.
    """
    config = model.network.config.get_text_config()
    found = config._attn_implementation
    if found != FUSED:
        raise ThriftyError(
            f"{method} decides what layers attend to where they use {FUSED!r} attention, but {model.name!r} uses "
            f"{found!r}: load it with attn_implementation={FUSED!r}, or take a model that can"
        )
    if model.window is not None:
        raise ThriftyError(
            f"{method} decides what layers attend to, but those of {model.name!r} look back {model.window} positions "
            "only: take a model with full attention"
        )


_local = threading.local()
_lock = threading.RLock()  # the implementation is an entry of the network's config, which all its users share


@contextmanager
def attending(network: Any, policy: AttentionPolicy, reading: Reading) -> Iterator[None]:
    """Let a policy at the attention of a network while the context is open, in this thread only.

    Args:
        network: a Hugging Face model that `require_hook` lets pass.
        policy: which decides.
        reading: the pass that is to be run.
    """
    _functions()
    config = network.config.get_text_config()
    with _lock:
        before, config._attn_implementation = config._attn_implementation, IMPLEMENTATION
        _local.present = (policy, reading)
        try:
            yield
        finally:
            _local.present = None
            config._attn_implementation = before


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """Attend as the present policy says; what transformers calls in every layer."""
    present: tuple[AttentionPolicy, Reading] | None = getattr(_local, "present", None)
    fused = _functions()[FUSED]
    if present is None:  # another thread's pass, beside one under a policy
        output: Tensor = fused(module, query, key, value, attention_mask, **options)[0]
        return output, None
    policy, reading = present
    layer, scaling = module.layer_idx, options["scaling"]
    mine = None
    if reading.newest:
        mask = attention_mask[:, :, :1]
        mine = policy.attend(reading, layer, query[:, :, :1], key, value, mask, scaling)
    if mine is not None and query.shape[2] == 1:
        output = mine.transpose(1, 2)
    else:
        output = fused(module, query, key, value, attention_mask, **options)[0]
        if mine is not None:
            output[:, :1] = mine.transpose(1, 2)
    policy.observe(reading, layer, query, key, attention_mask, scaling)
    return output, None


@functools.cache
def _functions() -> Any:
    """Return transformers' table of attention functions, the hook among them."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # heavy, and loaded with any network

    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attention)
    return ALL_ATTENTION_FUNCTIONS
