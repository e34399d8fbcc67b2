"""The card of the pebbles: what stands in the repository is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import card
from thrifty.models import embedded_folder
from thrifty.models.torch import TorchModel

EVIDENCE = card.ROOT / "evidence" / "pebbles"


def test_the_card_is_that_of_the_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["card.py", "--out", str(tmp_path / "card.md")])
    card.main()
    assert (tmp_path / "card.md").read_text() == (card.ROOT / "docs" / "pebbles.md").read_text()


def test_it_was_measured_on_the_models_of_the_package(pebble: TorchModel) -> None:
    found = {path.stem: json.loads(path.read_text()) for path in EVIDENCE.glob("*.json")}
    assert set(found) == {"pebble", "pebble-small"}
    assert found["pebble"]["parameters"] == pebble.parameters
    for name, measured in found.items():
        assert (embedded_folder(name) / "model.safetensors").exists()
        assert set(measured["levels"]) == {"easy", "default", "hard"}
        assert measured["training"]["tokens"] > 0
