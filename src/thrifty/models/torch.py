"""Hugging Face causal language models: loaded from a folder, the hub or a GGUF file, on CPU or CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.errors import MissingExtra, ThriftyError
from thrifty.models.base import Model, prompt_messages
from thrifty.models.cache import RowCache
from thrifty.traces.think import PhaseTracker, ThinkFormat, detect_think_format
from thrifty.traces.tokens import TokenTexts
from thrifty.traces.trace import Message

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one pass stand and what they see, where that is not one after the other.

    Attributes:
        positions: of each token in the text, int64 ``(rows, time)``.
        visible: which of the pass's tokens each of them attends to, itself included, bool ``(rows, time, time)``.
        past: which stored positions it attends to, bool ``(rows, time, stored)``; None for all of its row's.
    """

    positions: Tensor
    visible: Tensor
    past: Tensor | None = None


class TorchModel(Model):
    """A decoder with everything open: logits, hidden states, embeddings, cache and weights.

    Args:
        network: a Hugging Face causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        name: as the user would load it again.
        think: how it marks its thinking; None to read it off its chat template.
    """

    gives: ClassVar[Need] = ~Need.NONE

    def __init__(self, network: Any, tokenizer: Any, name: str, think: ThinkFormat | None = None) -> None:
        self.network, self.tokenizer, self.name = network, tokenizer, name
        config = network.config.get_text_config()
        layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
        if layer_types - _KNOWN_LAYERS:
            raise ThriftyError(
                f"{name!r} has layers of type {', '.join(sorted(layer_types - _KNOWN_LAYERS))}, whose state cannot be "
                "forked and rewound; models whose layers all attend to keys and values can be loaded"
            )
        self._layer_types = layer_types
        self._window: int | None = getattr(config, "sliding_window", None)
        if not getattr(config, "use_sliding_window", True) or (not hasattr(config, "layer_types") and not self._window):
            self._window = None
        self._additive_mask = getattr(network.config, "_attn_implementation", "sdpa") == "eager"
        self.texts = TokenTexts(tokenizer)
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        self.template = template
        special = [t.content for t in getattr(tokenizer, "added_tokens_decoder", {}).values()]
        self.think = think or detect_think_format(template, special)
        self.tracker = PhaseTracker(self.think, self.texts.bytes_of)
        self.layers: int = config.num_hidden_layers
        self.hidden_size: int = config.hidden_size
        self.context_length: int = getattr(config, "max_position_embeddings", 1 << 20)
        # the real softmax: embeddings are often padded, and a tokenizer's ids may have gaps
        self.vocabulary_size = min(max(tokenizer.get_vocab().values()) + 1, config.vocab_size)
        self.parameters = sum(p.numel() for p in network.parameters())
        self.eos_ids = self._end_tokens()
        self.close_length = len(self.encode("\n" + self.think.force_close)) if self.think.thinks else 0

    def _end_tokens(self) -> frozenset[int]:
        found: set[int] = set()
        generation = getattr(self.network, "generation_config", None)
        for source in (generation, self.network.config, self.tokenizer):
            ids = getattr(source, "eos_token_id", None)
            found.update([ids] if isinstance(ids, int) else ids or [])
        return frozenset(found)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        device: torch.device = self.network.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    @property
    def window(self) -> int | None:
        """How many positions some of its layers look back, None where all layers see everything."""
        return self._window

    def render(self, messages: Sequence[Message], **template_options: Any) -> str:
        """Return the prompt text for a conversation, up to where the response begins.

        Args:
            messages: the conversation.
            **template_options: passed on to the chat template, such as ``enable_thinking=False``.
        """
        if not self.tokenizer.chat_template:
            return "\n\n".join(m["content"] for m in messages) + "\n"
        text: str = self.tokenizer.apply_chat_template(
            prompt_messages(messages), tokenize=False, add_generation_prompt=True, **template_options
        )
        return text

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, no special tokens added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def encode_prompt(self, text: str, sample: int = 0) -> list[int]:
        """Return the token ids of a rendered prompt; a model without a template gets its own first token.

        Args:
            text: the prompt.
            sample: which response to it is wanted; only a model that plays recordings reads it.
        """
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=not self.tokenizer.chat_template)
        return ids

    def notes(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> dict[str, str]:
        """Return what the events of a finished response should say beside what controllers noted.

        Args:
            prompt_ids: its prompt.
            ids: the response.
        """
        return {}

    def flops(self, positions: int, context: int) -> float:
        """Estimate the floating-point operations of some positions.

        Args:
            positions: how many were computed.
            context: positions stored before the first of them.

        Returns:
            Two operations a parameter and position, and four a layer, hidden unit and attended position.
        """
        attended = positions * context + positions * (positions + 1) // 2
        return float(2 * self.parameters * positions + 4 * self.layers * self.hidden_size * attended)

    @torch.inference_mode()
    def forward(
        self,
        cache: RowCache,
        inputs: Tensor,
        lengths: Tensor,
        longest: int,
        equal: bool,
        keep: Tensor | None,
        layout: Layout | None = None,
    ) -> Tensor:
        """Run one pass over some rows, behind what the cache holds for them.

        The caller has aimed the cache. Positions behind a row's own tokens are padding: they are computed
        and overwritten later, and no real position attends to them.

        Args:
            cache: the rows' keys and values.
            inputs: token ids ``(rows, time)`` int64, or embeddings ``(rows, time, hidden)``.
            lengths: positions stored for each row ``(rows,)`` int64.
            longest: the largest of the lengths.
            equal: whether all lengths are equal.
            keep: positions in time whose logits are wanted ``(kept,)`` int64, None for all.
            layout: None for tokens that follow each other.

        Returns:
            Logits ``(rows, kept, vocab)`` over the real vocabulary, in the model's dtype.
        """
        time = inputs.shape[1]
        steps = torch.arange(time, device=inputs.device)
        columns = torch.arange(longest + time, device=inputs.device)
        if layout is None:
            places = lengths[:, None] + steps
            evicted = cache.plan.evicted
            positions = places if evicted is None else places + evicted[:, None]
            ends = places[:1] if equal else places  # rows of one length share a mask
            mask = self._masks((columns <= ends[:, :, None])[:, None], ends, columns[None])
        else:
            positions = layout.positions
            mask = self._masks(*_lay_out(layout, lengths, columns))
        named = {"input_ids": inputs} if inputs.dtype == torch.int64 else {"inputs_embeds": inputs}
        output = self.network(
            **named,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **({} if keep is None else {"logits_to_keep": keep}),
        )
        logits: Tensor = output.logits[..., : self.vocabulary_size]
        return logits

    def _masks(self, mask: Tensor, positions: Tensor, stored: Tensor) -> Tensor | dict[str, Tensor]:
        """Turn a mask ``(rows, 1, time, columns)`` into what the network takes.

        Args:
            mask: what sees what.
            positions: of the new tokens ``(rows, time)``.
            stored: of what each column holds ``(rows, columns)``.
        """
        masks = {"full_attention": mask}
        if self._window is not None:
            near = stored[:, None, None] > positions[:, None, :, None] - self._window
            masks["sliding_attention"] = mask & near
        if self._additive_mask:
            low = torch.finfo(self.dtype).min
            masks = {k: torch.zeros_like(m, dtype=self.dtype).masked_fill(~m, low) for k, m in masks.items()}
        if len(self._layer_types) > 1:
            return masks
        return masks["sliding_attention" if self._window is not None else "full_attention"]

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input embeddings ``(..., hidden)`` of token ids."""
        embedded: Tensor = self.network.get_input_embeddings()(ids)
        return embedded

    @contextmanager
    def tap(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Collect hidden states behind some layers while the context is open.

        Args:
            layers: which, 0 for the embeddings, `layers` for the last layer before the final norm.

        Yields:
            A dictionary that every forward pass refills: layer to ``(rows, time, hidden)``.
        """
        seen: dict[int, Tensor] = {}
        blocks = self._blocks()

        def behind(layer: int) -> Any:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                seen[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        sources = {layer: self.network.get_input_embeddings() if layer == 0 else blocks[layer - 1] for layer in layers}
        handles = [module.register_forward_hook(behind(layer)) for layer, module in sources.items()]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _blocks(self) -> Any:
        for module in self.network.modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) == self.layers:
                return module
        raise ThriftyError(f"cannot find the decoder layers of {self.name!r}")


def _lay_out(layout: Layout, lengths: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mask ``(rows, 1, time, columns)``, the new positions, and the position that each column holds."""
    time = layout.positions.shape[1]
    behind = columns - lengths[:, None]
    index = behind.clamp(0, time - 1)
    new = (behind >= 0) & (behind < time)
    seen = layout.visible.gather(2, index[:, None].expand(-1, time, -1))
    past = (columns < lengths[:, None])[:, None]
    if layout.past is not None:
        stored = layout.past.shape[2]
        past = past & torch.cat([layout.past, layout.past.new_zeros(*layout.past.shape[:2], len(columns) - stored)], 2)
    mask = past | (new[:, None] & seen)
    return mask[:, None], layout.positions, torch.where(new, layout.positions.gather(1, index), columns)


def load_torch_model(
    source: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    think: ThinkFormat | None = None,
    name: str | None = None,
) -> TorchModel:
    """Load a model for local decoding.

    Args:
        source: a folder, a GGUF file or a hub id.
        device: such as ``cuda``; None for CUDA where there is one.
        dtype: a key of `DTYPES`; None for float32 on a CPU and the checkpoint's own on CUDA.
        think: the think format; None to detect it.
        name: shown to the user; None for the source.

    Raises:
        MissingExtra: torch or transformers is not installed.
        ThriftyError: the source cannot be loaded.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtra("transformers", "local") from error
    logging.disable_progress_bar()
    if dtype is not None and dtype not in DTYPES:
        raise ThriftyError(f"unknown dtype {dtype!r}: one of {', '.join(DTYPES)}")
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if target == "cpu":
        # where there is a mask, Hugging Face else copies all keys and values for each head of the queries
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    path = Path(source).expanduser()
    options: dict[str, Any] = {}
    if path.is_file():
        if path.suffix != ".gguf":
            raise ThriftyError(f"{source!r} is a file, but not a .gguf one: give the model's folder")
        options, location = {"gguf_file": path.name}, str(path.parent)
    else:
        location = str(path) if path.is_dir() else source
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        network = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=DTYPES[dtype] if dtype else "auto" if target.startswith("cuda") else torch.float32,
            **options,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ThriftyError(_why_not(source, error)) from error
    network = network.to(target).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return TorchModel(network, tokenizer, name or source, think)


def _why_not(source: str, error: Exception) -> str:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
    if Path(source).expanduser().exists():
        return f"cannot load {source!r}: {reason}"
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return (
        f"no model {source!r}: not 'pebble', not a folder or .gguf file here, and the hub did not give it{offline}. "
        f"For a server write http://HOST:PORT/v1#MODEL. ({reason})"
    )
