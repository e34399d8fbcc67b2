"""Loading a model by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from thrifty.errors import MissingExtra
from thrifty.models.base import Model
from thrifty.traces.think import think_format

EMBEDDED = {
    "pebble": "a small reasoner that thinks for real and overthinks for real; comes with the package",
    "pebble-small": "the same at a third of the size, with the same tokens: a partner in systems of two models",
}


def load_model(name: str, *, device: str | None = None, dtype: str | None = None, think: str | None = None) -> Model:
    """Load a model.

    Args:
        name: ``pebble``, ``pebble-small``, a folder, a ``.gguf`` file, a hub id, ``http://HOST:PORT/v1#MODEL``, or
            ``replay:FILE`` for recorded traces (`thrifty.models.replay`).
        device: for local models, such as ``cuda``; None for CUDA where there is one.
        dtype: for local models, such as ``float64``; None for the usual.
        think: name of the think format, or its two markers with a comma; None to detect it.

    Raises:
        MissingExtra: torch is not installed and the model is local.
        ThriftyError: there is no such model; the message says what a name may be.
    """
    format = think_format(think) if think else None
    if name.startswith(("http://", "https://")):
        from thrifty.models.remote import RemoteModel

        return RemoteModel.connect(name)
    try:
        from thrifty.models.torch import load_torch_model
    except ImportError as error:
        raise MissingExtra("torch", "local") from error
    if name.startswith("replay:"):
        from thrifty.models.replay import load_replay

        return load_replay(name.removeprefix("replay:"), format)
    source = str(embedded_folder(name)) if name in EMBEDDED else name
    return load_torch_model(source, device=device, dtype=dtype, think=format, name=name)


def embedded_folder(name: str) -> Path:
    """Return the folder of an embedded model."""
    return Path(str(files("thrifty.models"))) / name
