"""DELTA: the card's worked numbers, its no-op setting, runs on models, and its mistakes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from thrifty.decoding.draft import Draft
from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.attention.delta import (
    Delta,
    page_scores,
    place_layers,
    released_layers,
    roles_of,
    select_pages,
    token_scores,
)
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace

SMALL = "page=4,pages=4,recent=2"
SHALLOW = f"delta({SMALL},warm_up=1,layers=(0,))"
"""For the toy's two layers: the first chooses, the second attends to what was chosen."""


# -- The card's numbers --------------------------------------------------------------------------------------


def test_scores_of_the_card() -> None:
    heads = torch.tensor([[[0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0.05, 0.05, 0.05, 0.6, 0.2, 0.05]]])
    scores = token_scores(heads)
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.1, 0.1, 0.6, 0.2, 0.1]]))
    pages = page_scores(scores, 2)
    torch.testing.assert_close(pages, torch.tensor([[0.6, 0.7, 0.3]]))
    torch.testing.assert_close(page_scores(heads.mean(1), 2), torch.tensor([[0.35, 0.425, 0.225]]))
    assert chosen(pages, 3, 2, 1) == [[1, 2]]


def chosen(scores: Tensor, count: int, kept: int, recent: int) -> list[list[int]]:
    found: list[list[int]] = select_pages(scores, torch.tensor([count]), torch.tensor([kept]), recent, kept).tolist()
    return found


def test_the_maximum_over_heads_is_not_their_mean() -> None:
    """Pages where each head has a token of its own count more than those to which all of them attend a little."""
    heads = torch.tensor([[[0.4, 0.0, 0.3, 0.3], [0.0, 0.4, 0.3, 0.3]]])
    torch.testing.assert_close(page_scores(token_scores(heads), 2), torch.tensor([[0.8, 0.6]]))
    torch.testing.assert_close(page_scores(heads.mean(1), 2), torch.tensor([[0.4, 0.6]]))


def test_ties_go_to_the_earlier_page() -> None:
    assert chosen(torch.tensor([[0.5, 0.5, 0.1]]), 3, 2, 1) == [[0, 2]]


def test_undefined_scores_come_last_and_rows_differ_in_length() -> None:
    scores = torch.tensor([[0.1, math.nan, 0.3, 0.2, 0.0], [0.5, 0.4, 0.9, 0.9, 0.9], [0.5, 0.4, math.nan, 0.1, 0.9]])
    counts, kept = torch.tensor([5, 2, 4]), torch.tensor([3, 2, 3])
    assert select_pages(scores, counts, kept, 1, 3).tolist() == [[2, 3, 4], [0, 1, 5], [0, 1, 3]]
    everything = select_pages(scores, counts, counts, 1, 5).tolist()
    assert everything == [[0, 1, 2, 3, 4], [0, 1, 5, 5, 5], [0, 1, 2, 3, 5]]


def test_roles_of_the_release() -> None:
    roles = roles_of(28, 2, (2, 14, 22))
    assert [i for i, role in enumerate(roles) if role != "sparse"] == [0, 1, 2, 14, 22]
    assert [i for i, role in enumerate(roles) if role == "delta"] == [2, 14, 22]
    assert Delta().roles(28) == roles
    assert released_layers(28, 2) == (2, 14, 22)
    assert [released_layers(n, 2) for n in (4, 6, 8, 30)] == [(2,), (2, 4), (2, 4, 6), (2, 15, 23)]
    assert roles_of(4, 1, (1, 2)) == ["full", "full", "delta", "sparse"]
    assert roles_of(3, 1, (2,)) == ["delta", "sparse", "full"]


def test_attended_tokens_of_the_card() -> None:
    class Depth:
        layers = 28

    policy = Delta().attention(Depth())  # type: ignore[arg-type]  # only the number of layers is read
    read = policy.attended(16384, 28)
    assert read == 5 * 16384 + 23 * 1024
    assert read / (28 * 16384) == pytest.approx(0.230, abs=5e-4)
    assert 28 * 16384 / read == pytest.approx(4.35, abs=5e-3)
    assert policy.attended(16385, 28) == 5 * 16385 + 23 * (63 * 16 + 1), "the last page is partial"
    assert policy.attended(1024, 28) == 28 * 1024


def test_the_calibration_of_the_card() -> None:
    maps = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    distances = (1 - torch.nn.functional.cosine_similarity(maps[:-1], maps[1:])).tolist()
    assert distances == [0.0, 1.0, 0.0]
    assert place_layers(distances, 0, 2) == (0, 2)


def test_layers_stand_apart_and_the_first_follows_the_warm_up() -> None:
    distances = [0.0] * 27
    for layer, distance in {3: 0.9, 13: 0.8, 14: 0.7, 22: 0.6, 27: 1.0}.items():
        distances[layer - 1] = distance
    # 3 is too near to 2, 14 to 13, and behind 27 nothing follows
    assert place_layers(distances, 2, 3) == (2, 13, 22)
    assert place_layers(distances, 2, 1) == (2,)
    assert place_layers([0.5, 0.5, 0.5], 2, 3) == (2,)


# -- In runs -------------------------------------------------------------------------------------------------


def solve(model: TorchModel, spec: str, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 60, "batch_size": 3, **values})
    jobs = jobs_for(load_task("mix").problems(limit=3, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[int]]:
    return {k: [i for s in t.segments if s.kind != "probe" for i in s.ids] for k, t in traces.items()}


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_no_op_setting_equals_vanilla_token_for_token(toy: TorchModel, temperature: float) -> None:
    plain = solve(toy, "vanilla", temperature=temperature)
    everything = solve(toy, "delta(page=4,warm_up=1,layers=(0,))", temperature=temperature)
    assert ids(plain) == ids(everything)
    for trace in everything.values():
        assert trace.events["delta"]["attended"] == trace.events["delta"]["full"]


@pytest.mark.parametrize("spec", [SHALLOW, f"delta({SMALL},warm_up=1,layers=(0,),selector=random)"])
def test_the_batch_changes_nothing(toy: TorchModel, spec: str) -> None:
    runs = [solve(toy, spec, batch_size=size, temperature=0.7) for size in (1, 2, 3)]
    assert ids(runs[0]) == ids(runs[1]) == ids(runs[2])
    assert [t.events for t in map(runs[0].get, runs[2])] == [t.events for t in runs[2].values()]


def test_a_draft_that_does_not_come_true_changes_nothing(toy: TorchModel) -> None:
    policy = get_method(SHALLOW).parts[0].attention(toy)
    drafted, plain = Session(toy, policy), Session(toy, policy)
    for session in (drafted, plain):
        session.add([list(range(20, 50)), [9, 8, 7]])
    for step in range(20):
        tokens = torch.tensor([60 + step, 90 + step])
        drafted.append_drafted(tokens, [Draft.chain([5, 6, 7]), Draft.chain([])])
        plain.append(tokens)
        torch.testing.assert_close(drafted.logits, plain.logits, rtol=1e-9, atol=1e-10)
    assert drafted.held.rows == plain.held.rows


def test_end_to_end_on_the_embedded_model(pebble: TorchModel) -> None:
    for trace in solve(pebble, f"delta({SMALL})", max_tokens=120).values():
        account = trace.events["delta"]
        roles = Delta().roles(pebble.layers)
        least = 1 - roles.count("sparse") / len(roles)
        assert least < account["attended"] / account["full"] < 1
        assert account["peak"] == trace.usage.prompt + trace.usage.generated - 1
        assert trace.answer_text.strip()


@pytest.mark.parametrize("other", ["cap(budget=20)", "cgrs(delta=0.0)", "first-try"])
def test_it_composes_with_control(pebble: TorchModel, other: str) -> None:
    for spec in (f"delta({SMALL})+{other}", f"{other}+delta({SMALL})"):
        for trace in solve(pebble, spec, max_tokens=80).values():
            assert trace.events["delta"]["attended"] < trace.events["delta"]["full"]
            assert trace.answer_text.strip()


# -- Mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("page=24", "power of two"),
        ("recent=0", "recent"),
        ("pages=4", "recent"),
        ("warm_up=-1", "warm_up"),
        ("start=0.5", "start"),
        ("layers=(-1,)", "numbers from 0"),
        ("layers=(2,),calibration=a.json", "not both"),
        ("selector=best", "attention, random"),
    ],
)
def test_mistakes_get_one_line(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message) as mistake:
        get_method(f"delta({options})")
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("delta", "of 2 layers"),
        ("delta(layers=(2,))", "2 layers, 0 to 1, and none is 2"),
        ("delta(warm_up=0,layers=(1,))", "the first must attend"),
        ("delta(calibration=absent.json)", "thrifty tune delta"),
    ],
)
def test_models_that_do_not_fit_are_refused(toy: TorchModel, spec: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(spec).check(toy)


def test_two_methods_cannot_both_decide() -> None:
    with pytest.raises(ThriftyError, match="'delta' and 'lazyeviction' both decide"):
        get_method("delta+lazyeviction")
