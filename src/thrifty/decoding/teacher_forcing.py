"""Reading a finished response as it stands: what a model would have predicted at each of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from thrifty.decoding.session import Session
from thrifty.models.torch import TorchModel


@torch.inference_mode()
def predictions(
    model: TorchModel, prompt_ids: Sequence[int], ids: Sequence[int], layers: Sequence[int] = (), chunk: int = 256
) -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
    """Yield what predicts each token of a response, some tokens at a time and in order.

    The last token is not read: nothing is predicted behind it.

    Args:
        model: which reads.
        prompt_ids: the rendered prompt.
        ids: the response, at least one token.
        layers: whose states are wanted too, as for `TorchModel.tap`.
        chunk: tokens read in a pass, which bounds the memory.

    Yields:
        Raw logits ``(tokens, vocab)``, and layer to states ``(tokens, hidden)`` at the positions that predict them.
    """
    session = Session(model)
    with model.tap(layers) as seen:
        session.add([prompt_ids])
        yield session.logits, {layer: states[0, -1:] for layer, states in seen.items()}
        for start in range(0, len(ids) - 1, chunk):
            some = torch.tensor([ids[start : min(start + chunk, len(ids) - 1)]], dtype=torch.int64)
            logits = session.append_all(some)
            yield logits[0], {layer: states[0] for layer, states in seen.items()}
