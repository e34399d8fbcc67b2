"""Verifiers: the same score from a kept state as from a pass of their own, every token read in the account."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from tests_helpers import random_verifier
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.controller import Controller
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.row import Row
from thrifty.decoding.verifier import Verifier
from thrifty.errors import ThriftyError
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task

SETTINGS = Settings(max_tokens=40, temperature=0.8, batch_size=3)


def rows(
    model: TorchModel, controllers: Sequence[Sequence[Controller]], keep: bool = True, count: int = 6
) -> list[Row]:
    """Return finished rows, each third one of which has the first controllers, and so on."""
    jobs = list(jobs_for(load_task("mix").problems(limit=count, seed=4), 1))
    plans = [
        (job, Plan(model.render(job.problem.messages), controllers[i % len(controllers)], keep=keep))
        for i, job in enumerate(jobs)
    ]
    places = {job.problem.id: i for i, (job, _) in enumerate(plans)}
    return sorted(decode_rows(model, plans, SETTINGS), key=lambda row: places[row.job.problem.id])


def expected(verifier: Verifier, row: Row) -> float:
    """Return the score of a row from a plain forward pass over prompt and response."""
    ids = torch.tensor([[*row.prompt_ids, *row.ids]])
    with torch.no_grad():
        states = row.model.network(ids, output_hidden_states=True, use_cache=False).hidden_states
    return float(verifier.gate.probabilities(states[verifier.layer][:, -1])[0, 1])


def test_a_kept_state_and_a_pass_of_its_own_give_the_same_score(toy: TorchModel) -> None:
    verifier = random_verifier(toy, layer=1)
    kept = rows(toy, [verifier.controllers(toy)])
    spent = [row.usage.total for row in kept]
    scores = verifier.score(kept)
    assert [row.usage.total for row in kept] == spent, "a kept state costs nothing"
    assert scores.dtype == torch.float64
    assert scores.std() > 0.01
    assert scores.tolist() == pytest.approx([expected(verifier, row) for row in kept], abs=1e-6)
    plain = rows(toy, [[]], keep=False)
    assert verifier.score(plain).tolist() == pytest.approx(scores.tolist(), abs=1e-6)
    for row, before in zip(plain, spent, strict=True):
        assert row.usage.probe == len(row.prompt_ids) + len(row.ids)
        assert row.usage.total == before + row.usage.probe
        assert row.usage.flops > 1.5 * toy.flops(1, 0) * row.usage.probe


def test_rows_that_were_not_tapped_are_read_beside_those_that_were(toy: TorchModel) -> None:
    verifier = random_verifier(toy, layer=1)
    mixed = rows(toy, [verifier.controllers(toy), [], random_verifier(toy, layer=0).controllers(toy)])
    assert verifier.score(mixed).tolist() == pytest.approx([expected(verifier, row) for row in mixed], abs=1e-6)
    assert verifier.score([]).tolist() == []


def test_another_models_trunk_is_loaded_and_its_tokens_are_the_helpers(toy: TorchModel, pebble: TorchModel) -> None:
    verifier = random_verifier(pebble, layer=3)
    assert verifier.controllers(toy) == []
    written = rows(toy, [[]], keep=False, count=3)
    passes = [row.usage.forward_passes for row in written]
    scores = verifier.score(written)
    assert bool(((scores > 0) & (scores < 1)).all())
    for row, before in zip(written, passes, strict=True):
        assert row.usage.helper == len(row.prompt_ids) + len(row.ids)
        assert (row.usage.probe, row.usage.forward_passes) == (0, before)


def test_another_vocabulary_is_read_as_text(toy: TorchModel, pebble: TorchModel) -> None:
    verifier = random_verifier(pebble, layer=3)
    other = other_vocabulary(toy)
    written = rows(other, [[]], keep=False, count=2)
    verifier.score(written)
    for row in written:
        prompt = pebble.encode_prompt(pebble.render(row.job.problem.messages))
        assert row.usage.helper == len(prompt) + len(pebble.encode(row.text()))


def other_vocabulary(model: TorchModel) -> TorchModel:
    tokenizer = deepcopy(model.tokenizer)
    tokenizer.add_tokens(["zebra crossing"])
    return TorchModel(model.network, tokenizer, "other")


def test_a_verifier_is_the_same_after_saving(toy: TorchModel, tmp_path: Path) -> None:
    verifier = random_verifier(toy, layer=1, calibration={"ece": 0.02, "auroc": 0.9})
    record, tensors = verifier.save(tmp_path / "deep")
    written = rows(toy, [verifier.controllers(toy)])
    for source in (tmp_path / "deep", record, tensors):
        loaded = Verifier.load(str(source))
        assert loaded.calibration == {"ece": 0.02, "auroc": 0.9}
        assert (loaded.layer, loaded.fits(toy)) == (1, True)
        assert loaded.score(written).tolist() == verifier.score(written).tolist()


def test_precision_does_not_make_another_trunk(pebble: TorchModel, pebble64: TorchModel, toy: TorchModel) -> None:
    verifier = random_verifier(pebble, layer=3)
    assert verifier.fits(pebble64)
    assert not verifier.fits(toy)


def test_what_is_missing_or_broken_is_said_in_one_line(tmp_path: Path, toy: TorchModel) -> None:
    with pytest.raises(ThriftyError, match=r"no verifier '.*nowhere'.*pebbles/verifier\.py"):
        Verifier.load(str(tmp_path / "nowhere"))
    record, _ = random_verifier(toy, layer=1).save(tmp_path)
    record.write_text(record.read_text()[:-20])
    with pytest.raises(ThriftyError, match="cannot be read"):
        Verifier.load(str(tmp_path))
    with pytest.raises(ThriftyError, match="holds no verifier"):
        Verifier("bare", Artefact("verifier", identity(toy)))


def test_a_trunk_that_was_trained_since_is_refused(toy: TorchModel) -> None:
    stale = TorchModel(toy.network, toy.tokenizer, "pebble")  # the name of the embedded model, other weights
    verifier = random_verifier(stale, layer=1)
    other = other_vocabulary(toy)
    other.network = deepcopy(toy.network)
    for parameter in other.network.parameters():
        parameter.data = -parameter.data
    with pytest.raises(ThriftyError, match="trained on another 'pebble'"):
        verifier.trunk(other)


def test_the_embedded_verifier_reads_pebbles_only(pebble: TorchModel, toy: TorchModel) -> None:
    verifier = Verifier("pebble-verifier", random_verifier(pebble, layer=3).artefact)
    assert verifier.trunk(pebble) is pebble
    assert verifier.trunk(toy).name == "pebble"  # writes the same tokens
    other = other_vocabulary(toy)
    fresh = Verifier("pebble-verifier", verifier.artefact)
    with pytest.raises(ThriftyError, match="reads what pebbles write, not 'other'"):
        fresh.trunk(other)


def test_scores_that_are_no_numbers_are_refused(toy: TorchModel) -> None:
    verifier = random_verifier(toy, layer=1)
    (row,) = rows(toy, [verifier.controllers(toy)], count=1)
    assert row.kept is not None
    row.kept.hidden[1] = torch.full_like(row.kept.hidden[1], torch.nan)
    with pytest.raises(ThriftyError, match="no numbers"):
        verifier.score([row])
