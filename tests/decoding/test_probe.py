"""Answer probes: what they see is what the model would say, and the row never knows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.probe import Probe, entropy, probe_answers
from thrifty.decoding.row import Row
from thrifty.models.base import Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task

CUE = "**Final Answer:** \\boxed{"


class Asking(Controller):
    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[tuple[list[int], Probe]] = []

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        due = [row for row in rows if len(row.ids) % self.every == 0 and row.thinking]
        if due:
            for row, probe in zip(due, probe_answers(batch, due, CUE, True, 8, True), strict=True):
                self.seen.append((row.prompt_ids + row.ids, probe))


def test_probes_leave_the_rows_alone_and_equal_a_plain_computation(pebble64: TorchModel) -> None:
    jobs = list(jobs_for(load_task("mix").problems(limit=5, seed=1), 1))
    asking = Asking(every=23)
    settings = Settings(max_tokens=100, batch_size=3)

    def traces(controllers: list[Controller]) -> dict[str, tuple[int, ...]]:
        found = decode(
            pebble64, jobs, settings, lambda j: Plan(pebble64.render(j.problem.messages), controllers), "test"
        )
        return {t.problem_id: tuple(i for s in t.segments if s.kind != "probe" for i in s.ids) for t in found}

    assert traces([asking]) == traces([])
    assert len(asking.seen) > 5
    for prefix, probe in asking.seen[:6]:
        row = [*prefix, *pebble64.encode(pebble64.think.force_close + CUE)]
        assert probe.cost == len(row) - len(prefix) + len(probe.ids) + probe.closed
        assert probe.distributions is not None
        for token, h, p, kept in zip(probe.ids, probe.entropies, probe.chosen, probe.distributions, strict=True):
            with torch.no_grad():
                logits = pebble64.network(torch.tensor([row]), use_cache=False).logits[
                    0, -1, : pebble64.vocabulary_size
                ]
            distribution = torch.softmax(logits, -1)
            assert token == int(logits.argmax())
            torch.testing.assert_close(kept, distribution)
            assert h == pytest.approx(float(-(distribution * distribution.log()).sum()), abs=1e-6)
            assert p == pytest.approx(float(distribution.max()), abs=1e-6)
            row.append(token)
        assert "}" not in probe.text


def test_every_token_a_probe_reads_or_writes_is_counted(pebble: TorchModel) -> None:
    jobs = list(jobs_for(load_task("mix").problems(limit=3, seed=1), 1))
    asking = Asking(every=20)
    cue = len(pebble.encode(pebble.think.force_close + CUE))
    found = decode(
        pebble, jobs, Settings(max_tokens=90), lambda j: Plan(pebble.render(j.problem.messages), [asking]), "test"
    )
    for trace in found:
        probes = [s for s in trace.segments if s.kind == "probe"]
        written = sum(len(s.ids) - cue for s in probes)
        closed = trace.usage.probe - len(probes) * cue - written
        assert 0 <= closed <= len(probes)  # the closing brace is generated too, once a closed probe
        assert trace.usage.forward_passes == trace.usage.generated + len(probes) + written


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=30))
def test_entropy_lies_between_zero_and_the_logarithm_of_the_size(values: list[float]) -> None:
    h = float(entropy(torch.tensor(values, dtype=torch.float64)))
    assert -1e-9 <= h <= math.log(len(values)) + 1e-9


def test_entropy_of_masked_tokens_is_finite() -> None:
    assert float(entropy(torch.tensor([0.0, -math.inf, 0.0]))) == pytest.approx(math.log(2))
