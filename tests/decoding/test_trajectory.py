"""The path of the hidden states: the card's numbers, running means against stored states, the lens, likelihoods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.decoding.controller import Controller
from thrifty.decoding.likelihood import Likelihood
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.row import Row
from thrifty.decoding.trajectory import Path, Trajectory, depth_signals, layer_signals, segment_means, signals
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task

SETTINGS = Settings(max_tokens=70, batch_size=3, temperature=0.8, loop_stop=False)
UNDEFINED = pytest.approx(math.nan, nan_ok=True)


def path_of(*points: tuple[float, float]) -> Tensor:
    """Return segment means of one layer."""
    return torch.tensor(points)[:, None]


def test_worked_numbers_of_the_card() -> None:
    corner = path_of((0, 0), (3, 0), (3, 4))
    assert signals(corner) == {"net": pytest.approx(5 / 3), "cumulative": 7.0, "aligned": pytest.approx(0.7)}
    assert signals(corner, "release")["net"] == pytest.approx(2.5)
    straight = path_of((0, 0), (1, 0), (2, 0))
    assert signals(straight) == {"net": pytest.approx(2 / 3), "cumulative": 2.0, "aligned": pytest.approx(1.0)}
    assert signals(path_of((0, 0), (1, 0), (0, 0))) == {"net": 0.0, "cumulative": 2.0, "aligned": 0.0}


def test_two_segments_are_aligned_and_one_is_undefined() -> None:
    two = signals(path_of((1, 2), (4, 6)))
    assert two == {"net": 2.5, "cumulative": 5.0, "aligned": pytest.approx(1.0)}
    assert signals(path_of((1, 2), (4, 6)), "release")["net"] == two["cumulative"]
    for few in (path_of((1, 2)), torch.zeros(0, 1, 2)):
        assert signals(few) == {"net": UNDEFINED, "cumulative": UNDEFINED, "aligned": UNDEFINED}


def test_layers_are_averaged_last() -> None:
    means = torch.cat([path_of((0, 0), (3, 0), (3, 4)), path_of((0, 0), (1, 0), (2, 0))], dim=1)
    assert layer_signals(means)["cumulative"].tolist() == [7.0, 2.0]
    assert signals(means)["aligned"] == pytest.approx(0.85)


@given(st.integers(2, 6), st.integers(1, 3), st.floats(0.5, 20), st.integers(0, 99))
def test_scaling_the_states_scales_the_lengths_and_leaves_the_angles(n: int, layers: int, c: float, seed: int) -> None:
    means = torch.randn(n, layers, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    plain, scaled = signals(means), signals(c * means)
    assert scaled["net"] == pytest.approx(c * plain["net"])
    assert scaled["cumulative"] == pytest.approx(c * plain["cumulative"])
    assert scaled["aligned"] == pytest.approx(plain["aligned"])
    assert plain["net"] * n <= plain["cumulative"] * (1 + 1e-9)
    assert -1 <= plain["aligned"] <= 1 + 1e-9


def test_depth_is_the_path_over_the_layers() -> None:
    corner = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]])
    assert depth_signals(corner) == {
        "layer_magnitude": pytest.approx(7 / 5),
        "layer_angle": pytest.approx(math.pi / 2),
    }
    straight = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]])
    both = depth_signals(torch.cat([corner, straight]))
    assert both == {"layer_magnitude": pytest.approx(1.2), "layer_angle": pytest.approx(math.pi / 4, abs=1e-3)}


def test_windows_and_a_short_last_one() -> None:
    means = segment_means(torch.arange(5.0)[:, None, None], 2)
    assert means.flatten().tolist() == [0.5, 2.5, 4.0]


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=30), st.integers(1, 9))
def test_running_means_are_those_of_the_stored_states(values: list[float], window: int) -> None:
    states = torch.tensor(values)[:, None, None]
    path = Path(window, 0)
    for state in states:
        path.add(state, line_ended=True)
    torch.testing.assert_close(path.means(), segment_means(states, window), atol=1e-5, rtol=1e-5)


def test_a_tiny_last_segment_joins_the_one_before_if_wanted() -> None:
    path = Path(8, 0)
    for value in (*[1.0] * 8, *[2.0] * 8, 10.0):
        path.add(torch.full((1, 1), value), line_ended=False)
    assert path.means().flatten().tolist() == [1.0, 2.0, 10.0]
    assert path.means(merge=True).flatten().tolist() == pytest.approx([1.0, 26 / 9])
    path.add(torch.full((1, 1), 10.0), line_ended=False)  # two of eight are no longer tiny
    assert path.means(merge=True).flatten().tolist() == [1.0, 2.0, 10.0]


def test_without_a_window_segments_end_where_lines_do() -> None:
    path = Path(0, 0)
    for value, ends in ((1.0, False), (3.0, True), (5.0, True), (7.0, False)):
        path.add(torch.full((1, 1), value), ends)
    assert path.means().flatten().tolist() == [2.0, 5.0, 7.0]


def rows_of(model: TorchModel, controllers: Sequence[Controller], keep: bool = False) -> list[Row]:
    jobs = jobs_for(load_task("mix").problems(limit=5, seed=5), 1)
    plans = [(job, Plan(model.render(job.problem.messages), controllers, keep=keep)) for job in jobs]
    return list(decode_rows(model, plans, SETTINGS))


def states_of(model: TorchModel, row: Row) -> Tensor:
    """Return the states ``(tokens, layers, hidden)`` of a row's thinking, from one pass over the whole text."""
    layers = range(1, model.layers + 1)
    with torch.inference_mode(), model.tap(layers) as seen:
        model.network(torch.tensor([[*row.prompt_ids, *row.ids]]))
    states = torch.stack([seen[layer][0] for layer in layers], dim=1)[len(row.prompt_ids) :]
    return states[: row.thinking_tokens]  # these models think first and once


def test_decoding_collects_what_a_pass_over_the_text_gives(toy: TorchModel) -> None:
    tracker = Trajectory(toy, window=8, checkpoint=20, lens=True)
    for row in rows_of(toy, [tracker]):
        assert row.closed_by is not None
        path: Path = row.state[tracker]
        states = states_of(toy, row)
        assert path.tokens == row.thinking_tokens == len(states)
        torch.testing.assert_close(path.means(), segment_means(states, 8), atol=1e-4, rtol=1e-4)
        assert path.at_checkpoint is not None
        torch.testing.assert_close(path.at_checkpoint, segment_means(states[:20], 8), atol=1e-4, rtol=1e-4)
        logits = toy.network.lm_head(toy.network.model.norm(states)).detach()
        two = logits.topk(2, dim=-1).values
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        expected = [float((two[..., 0] - two[..., 1]).mean(1).sum()), float(entropy.mean(1).sum())]
        assert path.lens == pytest.approx(expected, rel=1e-4)


def test_a_row_stops_at_the_checkpoint_its_newest_state_seen(toy: TorchModel) -> None:
    tracker = Trajectory(toy, window=8, checkpoint=24, stop=True)
    for row in rows_of(toy, [tracker], keep=True):
        assert row.stopped == "checkpoint"
        assert len(row.ids) == row.thinking_tokens == row.state[tracker].tokens == 24
        torch.testing.assert_close(
            row.state[tracker].means(), segment_means(states_of(toy, row), 8), atol=1e-4, rtol=1e-4
        )


def test_the_lens_is_charged_and_changes_nothing(toy: TorchModel) -> None:
    plain, seen = rows_of(toy, []), rows_of(toy, [Trajectory(toy, 8, lens=True)])
    projection = 2.0 * toy.layers * toy.hidden_size * toy.vocabulary_size
    expected = {row.job.problem.id: (row.ids, row.usage.flops + projection * row.thinking_tokens) for row in plain}
    for row in seen:
        ids, flops = expected[row.job.problem.id]
        assert row.ids == ids
        assert row.usage.flops == pytest.approx(flops)


class _Distributions(Controller):
    """Keep every raw distribution and whether its token was forced."""

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        for row, values in zip(rows, torch.log_softmax(logits, -1), strict=True):
            row.state.setdefault(self, []).append((values, bool(row.forced)))
        return logits


def test_likelihood_is_that_of_the_chosen_tokens(toy: TorchModel) -> None:
    watch, likelihood = _Distributions(), Likelihood()
    for row in rows_of(toy, [likelihood, watch]):
        chosen = [(float(d[i]), f) for (d, f), i in zip(row.state[watch], row.ids, strict=True)]
        assert any(forced for _, forced in chosen), "the limit must have closed the thinking"
        free = [value for value, forced in chosen if not forced]
        assert likelihood.mean(row) == pytest.approx(sum(free) / len(free))
        forced = [f for _, f in chosen].index(True)
        thinking = [value for value, _ in chosen[:forced]]
        assert likelihood.mean(row, ("thinking",)) == pytest.approx(sum(thinking) / len(thinking))


def test_likelihood_of_nothing_is_none(toy: TorchModel) -> None:
    (row, *_) = rows_of(toy, [])
    assert Likelihood().mean(row) is None
