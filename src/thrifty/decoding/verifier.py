"""Process verifiers: the probability that a response will end right, read off the hidden states along its way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.controller import Controller
from thrifty.decoding.gate import Gate
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.models import embedded_folder, load_model
from thrifty.models.torch import TorchModel

EMBEDDED = "pebble-verifier"
"""The verifier that lies beside the embedded pebble."""
CLASSES = ("wrong", "right")
ROWS = 16
"""Responses read together in a pass of the verifier's own."""
_SLUG = "verifier"
_TRAIN = "`python pebbles/verifier.py --model MODEL --out FOLDER`"


class Tap(Controller):
    """Have the states of a layer kept with each row that is called with ``keep``.

    Args:
        layer: which.
    """

    def __init__(self, layer: int) -> None:
        self.taps = (layer,)


class Verifier:
    """A small head on the states of one layer of a trunk model, trained to tell how often a prefix ends right.

    Where the trunk is the model that generates, a row that was called with `controllers` and ``keep`` is scored
    from the states that it kept: that costs nothing. Any other row is read in a pass of its own, prompt and response,
    and the row's account bears the tokens: as ``probe`` if the trunk is the row's model, else as ``helper``.

    Labels by Monte Carlo continuations follow Math-Shepherd, arXiv 2312.08935; a head on the generator's own states
    is a reconstruction, for models too small for a reward model beside them.

    Args:
        name: as the user would load it again.
        artefact: the head, the trunk's identity and the calibration.

    Raises:
        ThriftyError: the artefact holds no such head.
    """

    def __init__(self, name: str, artefact: Artefact) -> None:
        self.name, self.artefact = name, artefact
        gate = artefact.gates.get(_SLUG)
        if gate is None or gate.classes != CLASSES:
            raise ThriftyError(f"{name!r} holds no verifier: train one with {_TRAIN}")
        self.gate: Gate = gate
        self._fitting: WeakKeyDictionary[TorchModel, bool] = WeakKeyDictionary()
        self._trunk: TorchModel | None = None

    @classmethod
    def load(cls, source: str) -> Self:
        """Read a verifier.

        Args:
            source: ``pebble-verifier``, a folder that holds ``verifier.json`` and ``verifier.safetensors``, or the path
                of either file.

        Raises:
            ThriftyError: there is none, or it cannot be read.
        """
        path = embedded_folder("pebble") if source == EMBEDDED else Path(source).expanduser()
        path = path / f"{_SLUG}.json" if path.is_dir() else path
        if not path.exists():
            how = "`make pebble-verifier`" if source == EMBEDDED else _TRAIN
            raise ThriftyError(
                f"there is no verifier {source!r}: name {EMBEDDED!r} or a folder, or train one with {how}"
            )
        try:
            return cls(source, Artefact.load(path, _SLUG))
        except ThriftyError as error:
            raise ThriftyError(f"verifier {source!r} cannot be read: train it again with {_TRAIN}") from error

    @classmethod
    def of(
        cls,
        model: TorchModel,
        gate: Gate,
        calibration: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> Self:
        """Make a verifier of a trained head.

        Args:
            model: the trunk.
            gate: the head, with the classes `CLASSES`.
            calibration: what was measured on held-out problems.
            settings: what it was trained with.
        """
        made = Artefact(_SLUG, identity(model), settings or {}, calibration or {}, gates={_SLUG: gate})
        return cls(f"the verifier of {model.name}", made)

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``verifier.json`` and ``verifier.safetensors`` into a folder and return their paths.

        Raises:
            ThriftyError: they cannot be written.
        """
        return self.artefact.save(Path(folder) / f"{_SLUG}.json")

    @property
    def calibration(self) -> dict[str, Any]:
        """What was measured on held-out problems, such as ``ece`` and ``auroc``."""
        return self.artefact.values

    @property
    def layer(self) -> int:
        """Whose states it reads; 0 for the embeddings."""
        return self.gate.layer

    def fits(self, model: TorchModel) -> bool:
        """Tell whether a model is the trunk, whatever it is called."""
        if model not in self._fitting:
            try:
                self.artefact.require(model)
                self._fitting[model] = True
            except ThriftyError:
                self._fitting[model] = False
        return self._fitting[model]

    def trunk(self, model: TorchModel) -> TorchModel:
        """Return the model that reads what another one generates: itself if it is the trunk, else the trunk, loaded.

        Raises:
            ThriftyError: the trunk cannot be loaded, or is not the one that the verifier was trained on.
        """
        if self.fits(model):
            return model
        if self._trunk is None:
            name = str(self.artefact.model["name"])
            if self.name == EMBEDDED and _vocabulary(model) != _vocabulary(load_model(name)):
                raise ThriftyError(
                    f"{EMBEDDED!r} reads what pebbles write, not {model.name!r}: name a verifier of your own, "
                    f"verifier=FOLDER, trained with {_TRAIN}"
                )
            dtype = str(model.dtype).removeprefix("torch.")
            trunk = load_model(name, device=str(model.device), dtype=dtype)
            if not isinstance(trunk, TorchModel) or not self.fits(trunk):
                raise ThriftyError(
                    f"verifier {self.name!r} was trained on another {name!r} than the present one: train it again with "
                    f"{'`make pebble-verifier`' if self.name == EMBEDDED else _TRAIN}"
                )
            self._trunk = trunk
        return self._trunk

    def controllers(self, model: TorchModel) -> list[Controller]:
        """Return what a call of a model needs, beside ``keep``, for its row to be scored without a pass."""
        return [Tap(self.layer)] if self.fits(model) else []

    def score(self, rows: Sequence[Row]) -> Tensor:
        """Return the probability that each row's answer will be right, as seen from its newest token.

        Args:
            rows: finished or stopped ones.

        Returns:
            float64 ``(rows,)`` on the CPU.

        Raises:
            ThriftyError: see `trunk`; or a score is not a number.
            ContextOverflow: a response does not fit the trunk's context.
        """
        states = [self._kept(row) for row in rows]
        unread = [i for i, state in enumerate(states) if state is None]
        for start in range(0, len(unread), ROWS):
            some = unread[start : start + ROWS]
            for i, state in zip(some, self._read([rows[i] for i in some]), strict=True):
                states[i] = state
        known = [state.float().cpu() for state in states if state is not None]
        if not known:
            return torch.zeros(0, dtype=torch.float64)
        scores = self.gate.probabilities(torch.stack(known))[:, 1].double()
        if bool(scores.isnan().any()):
            raise ThriftyError(f"verifier {self.name!r} gives scores that are no numbers: train it again with {_TRAIN}")
        return scores

    def _kept(self, row: Row) -> Tensor | None:
        """Return the state ``(hidden,)`` that a row kept, None if it kept none."""
        if row.kept is None or not self.fits(row.model):
            return None
        states = row.kept.hidden.get(self.layer)
        return None if states is None else states[0]

    @torch.inference_mode()
    def _read(self, rows: Sequence[Row]) -> Tensor:
        """Read rows of one model and return the states ``(rows, hidden)`` behind them."""
        model = rows[0].model
        trunk = self.trunk(model)
        if trunk is model or _vocabulary(trunk) == _vocabulary(model):
            ids = [[*row.prompt_ids, *row.ids] for row in rows]
        else:
            prompts = [trunk.render(row.job.problem.messages) for row in rows]
            ids = [trunk.encode_prompt(p) + trunk.encode(r.text()) for p, r in zip(prompts, rows, strict=True)]
        session = Session(trunk)
        with session.tap([self.layer]):
            session.add(ids)
        for row, read in zip(rows, ids, strict=True):
            row.usage.flops += trunk.flops(len(read), 0)
            if trunk is model:
                row.usage.probe += len(read)
                row.usage.forward_passes += 1
            else:
                row.usage.helper += len(read)
        return session.hidden[self.layer]


def _vocabulary(model: Any) -> dict[str, int]:
    tokenizer = getattr(model, "tokenizer", None)  # recordings have none
    vocabulary: dict[str, int] = tokenizer.get_vocab() if tokenizer is not None else {}
    return vocabulary
