"""Artefacts: what is saved comes back, and what does not belong here is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import make_toy
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.gate import Gate
from thrifty.errors import ThriftyError
from thrifty.models.torch import TorchModel


@pytest.fixture
def made(toy: TorchModel) -> Artefact:
    deep = Gate(
        ("a", "b"), 2, torch.zeros(3), torch.ones(3), torch.rand(2, 4), torch.rand(2), torch.rand(4, 3), torch.rand(4)
    )
    flat = Gate(("a", "b", "c"), 0, torch.zeros(3), torch.ones(3), torch.rand(3, 3), torch.rand(3))
    return Artefact(
        "first-try", identity(toy), {"samples": 3}, {"theta": 0.25}, {"warning": []}, {"deep": deep, "flat": flat}
    )


def test_an_artefact_comes_back_as_it_was(made: Artefact, tmp_path: Path) -> None:
    paths = made.save(tmp_path / "new" / "v1.2.json")
    assert [p.name for p in paths] == ["v1.2.json", "v1.2.safetensors"]
    for path in (*paths, tmp_path / "new" / "v1.2"):
        back = Artefact.load(path, "first-try")
        assert (back.model, back.settings, back.values, back.report) == (
            made.model,
            made.settings,
            made.values,
            made.report,
        )
        for name, gate in made.gates.items():
            assert (back.gates[name].classes, back.gates[name].layer) == (gate.classes, gate.layer)
            assert back.gates[name].tensors.keys() == gate.tensors.keys()
            assert all(torch.equal(back.gates[name].tensors[k], t) for k, t in gate.tensors.items())


def test_without_gates_there_is_only_the_json_file(made: Artefact, tmp_path: Path) -> None:
    bare = Artefact("cgrs", made.model, values={"delta": 0.5})
    assert bare.save(tmp_path / "c.json") == [tmp_path / "c.json"]
    assert Artefact.load(tmp_path / "c.json", "cgrs") == bare


def test_models_are_told_apart_by_their_weights_not_by_their_names(
    made: Artefact, toy: TorchModel, pebble: TorchModel, pebble64: TorchModel
) -> None:
    renamed = TorchModel(toy.network, toy.tokenizer, "another name")
    made.require(renamed)
    with pytest.raises(ThriftyError, match=r"made for 'toy'.*thrifty tune first-try") as refusal:
        made.require(pebble)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ThriftyError, match="weights"):
        made.require(make_toy(seed=1))
    of_pebble = Artefact("cgrs", identity(pebble))
    of_pebble.require(pebble64)
    half = TorchModel(make_toy().network.to(torch.bfloat16), toy.tokenizer, "toy")
    made.require(half)


def test_missing_broken_and_foreign_files_are_one_line(made: Artefact, tmp_path: Path) -> None:
    def refused(name: str, method: str = "first-try") -> str:
        with pytest.raises(ThriftyError) as refusal:
            Artefact.load(tmp_path / name, method)
        assert "\n" not in str(refusal.value)
        assert f"thrifty tune {method}" in str(refusal.value)
        return str(refusal.value)

    assert "there is no" in refused("absent.json")
    record, tensors = made.save(tmp_path / "a.json")
    assert "made for 'first-try'" in refused("a.json", "cgrs")
    content = json.loads(record.read_text())
    tensors.write_bytes(b"no tensors")
    assert "cannot be read" in refused("a.json")
    tensors.unlink()
    assert "cannot be read" in refused("a.json")
    for broken in (
        "not json",
        "[]",
        "{}",
        json.dumps({**content, "format": 99}),
        json.dumps({**content, "gates": {"x": {}}}),
    ):
        made.save(tmp_path / "a.json")
        record.write_text(broken)
        assert "cannot be read" in refused("a.json")
    made.save(tmp_path / "a.json")
    content["gates"]["deep"]["classes"] = ["only"]
    record.write_text(json.dumps(content))
    assert "output must have the shape" in refused("a.json")


def test_a_folder_that_cannot_be_written_is_one_line(made: Artefact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ThriftyError, match="--out"):
        made.save(tmp_path / "file" / "a.json")
