"""What is installed, what a model gives and how it thinks."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from thrifty import __version__
from thrifty.errors import ThriftyError
from thrifty.methods import get_method, list_methods
from thrifty.models import load_model
from thrifty.models.base import Model
from thrifty.sandbox import PROTECTIONS, isolation

EXTRAS = {
    "local": ("torch", "transformers", "safetensors"),
    "tasks": ("reasoning-gym", "math-verify"),
    "hub": ("datasets",),
    "gguf": ("gguf", "accelerate"),
    "report": ("matplotlib",),
}


def examine(name: str, *, device: str | None = None, think: str | None = None) -> dict[str, dict[str, Any]]:
    """Look at the installation and at a model.

    Args:
        name: of the model, as for `load_model`.
        device: for local models.
        think: the think format, None to detect it.

    Returns:
        Sections of findings: ``installed``, ``model``, ``methods``, and which walls the ``sandbox`` for programs has.
    """
    installed = {"thrifty": __version__, "python": platform.python_version()}
    for extra, packages in EXTRAS.items():
        for package in packages:
            try:
                installed[package] = version(package)
            except PackageNotFoundError:
                installed[package] = f"missing: pip install 'thrifty[{extra}]'"
    model = load_model(name, device=device, think=think)
    try:
        return {"installed": installed, "model": _model(model), "methods": _methods(model), "sandbox": _sandbox()}
    finally:
        model.close()


def _model(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": model.name, "gives": model.gives.names}
    if hasattr(model, "network"):  # a local one; torch need not be installed for the others
        found.update(
            architecture=type(model.network).__name__,
            parameters=f"{model.parameters:,}",
            context=f"{model.context_length:,} tokens",
            vocabulary=f"{model.vocabulary_size:,} tokens",
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            template="yes" if model.template else "none: messages are joined with blank lines",
            think=_think(model),
            ends=[model.texts.text([i]) for i in sorted(model.eos_ids)] or "no end token known",
        )
    return found


def _think(model: Any) -> str:
    format = model.think
    if not format.thinks:
        return "no think block found in the chat template; name its markers with --think if it has one"
    prompt = model.render([{"role": "user", "content": "?"}])
    where = "opened in the prompt" if model.tracker.start(prompt).phase == "thinking" else "opened by the model"
    return f"{format.open!r} ... {format.close!r} ({format.name}), {where}"


def _sandbox() -> dict[str, str]:
    try:
        missing = isolation().missing
    except ThriftyError as error:  # not every system can have one
        return {"programs": f"do not run: {error}"}
    return {wall: f"missing: {missing[wall]}" if wall in missing else "holds" for wall in PROTECTIONS}


def _methods(model: Model) -> dict[str, str]:
    verdicts = {}
    for slug in list_methods():
        try:
            get_method(slug).check(model)
            verdicts[slug] = "runs"
        except ThriftyError as error:
            verdicts[slug] = f"does not run: {error}"
    return verdicts
