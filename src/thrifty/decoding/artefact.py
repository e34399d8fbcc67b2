"""What tuning leaves behind: gates, networks and calibrated numbers that belong to one model, in two plain files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from thrifty.decoding.gate import Gate
from thrifty.errors import ThriftyError
from thrifty.models.torch import TorchModel

FORMAT = 1
_GROUPS, _SAMPLES, _TOLERANCE = 8, 8, 0.02
"""Weights that tell models apart: so many of so many parameters, equal up to what a lower precision does to them."""


@dataclass(frozen=True)
class Artefact:
    """What a method was taught about one model: ``NAME.json``, and ``NAME.safetensors`` where it has tensors.

    Attributes:
        method: slug of the method.
        model: what the model is known by (see `identity`).
        settings: what it was made with.
        values: calibrated numbers that the method reads.
        report: what the tuning found, for people.
        gates: by the method's names for them.
        networks: parameters of networks that are no gates, by the method's names for both.
    """

    method: str
    model: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)
    networks: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def save(self, path: str | Path) -> list[Path]:
        """Write the artefact.

        Args:
            path: of the JSON file; the tensors lie beside it.

        Returns:
            The files written.

        Raises:
            ThriftyError: they cannot be written.
        """
        record, tensors = _paths(path)
        gates = {name: {"classes": gate.classes, "layer": gate.layer} for name, gate in self.gates.items()}
        content = {
            "format": FORMAT,
            "method": self.method,
            "model": self.model,
            "settings": self.settings,
            "values": self.values,
            "gates": gates,
            "networks": list(self.networks),
            "report": self.report,
        }
        parts = {name: gate.tensors for name, gate in self.gates.items()} | self.networks
        named = {f"{name}.{part}": t.cpu() for name, its in parts.items() for part, t in its.items()}
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
            if named:
                save_file(named, tensors)
            record.write_text(json.dumps(content, indent=2) + "\n")
        except (OSError, SafetensorError) as error:
            raise ThriftyError(f"cannot write {record}: {error}; choose another --out") from error
        return [record, tensors] if named else [record]

    @classmethod
    def load(cls, path: str | Path, method: str) -> Self:
        """Read an artefact.

        Args:
            path: of either file.
            method: slug of the method that wants it.

        Raises:
            ThriftyError: it is missing, broken, or of another method.
        """
        record, tensors = _paths(path)
        how = f"make it with `thrifty tune {method} --out {record}`"
        if not record.is_file():
            raise ThriftyError(f"{method}: there is no {record}: {how}")
        try:
            found = cls._read(record, tensors)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, ThriftyError) as error:
            reason = " ".join(str(error).split())
            raise ThriftyError(f"{method}: {record} cannot be read ({reason}): {how}") from error
        if found.method != method:
            raise ThriftyError(f"{method}: {record} was made for {found.method!r}: {how}")
        return found

    @classmethod
    def _read(cls, record: Path, tensors: Path) -> Self:
        content = json.loads(record.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, not {FORMAT}")
        networks = content.get("networks", [])
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in (*content["gates"], *networks)}
        for key, tensor in (load_file(tensors) if parts else {}).items():
            name, _, part = key.partition(".")
            parts[name][part] = tensor
        gates = {
            name: Gate(tuple(about["classes"]), int(about["layer"]), **parts[name])
            for name, about in content["gates"].items()
        }
        kept = {key: dict(content[key]) for key in ("model", "settings", "values", "report")}
        return cls(
            method=str(content["method"]), gates=gates, networks={name: parts[name] for name in networks}, **kept
        )

    def require(self, model: TorchModel) -> None:
        """Refuse a model that the artefact was not made for.

        Raises:
            ThriftyError: the model is another one.
        """
        if not _same(self.model, identity(model)):
            raise ThriftyError(
                f"the artefact given to {self.method} was made for {self.model.get('name')!r}, whose weights are not "
                f"those of {model.name!r}: make one with `thrifty tune {self.method} --model {model.name} --out FILE`"
            )


def identity(model: TorchModel) -> dict[str, Any]:
    """Return what tells a model from others, whatever it is called and whatever precision it is loaded in.

    Args:
        model: which.

    Returns:
        Its name, its sizes and some of its weights.
    """
    network = getattr(model, "network", None)  # recordings have none, and are no trained model's equal
    parameters = [p for p in network.parameters() if p.numel() >= _SAMPLES] if network is not None else []
    chosen = [parameters[i] for i in sorted({round(x) for x in _even(len(parameters) - 1, _GROUPS)}) if parameters]
    weights = []
    for parameter in chosen:
        flat = parameter.detach().reshape(-1)
        places = torch.tensor([int(x) for x in _even(len(flat) - 1, _SAMPLES)], device=flat.device)
        weights.append([float(f"{w:.5g}") for w in flat[places].tolist()])
    return {
        "name": model.name,
        "hidden_size": model.hidden_size,
        "layers": model.layers,
        "vocabulary_size": model.vocabulary_size,
        "weights": weights,
    }


def _even(last: int, count: int) -> list[float]:
    return [last * i / (count - 1) for i in range(count)]


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    sizes = ("hidden_size", "layers", "vocabulary_size")
    if any(a.get(key) != b.get(key) for key in sizes) or len(a.get("weights", ())) != len(b["weights"]):
        return False
    return all(
        abs(x - y) <= _TOLERANCE * max(map(abs, theirs))
        for ours, theirs in zip(a["weights"], b["weights"], strict=True)
        for x, y in zip(ours, theirs, strict=True)
    )


def _paths(path: str | Path) -> tuple[Path, Path]:
    """Return the two files; a dot in a name need not begin an extension."""
    path = Path(path).expanduser()
    stem = path.name.removesuffix(".json").removesuffix(".safetensors")
    return path.with_name(f"{stem}.json"), path.with_name(f"{stem}.safetensors")
