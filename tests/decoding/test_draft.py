"""Drafts: whatever is guessed, rows write what they would have written, and in fewer passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.decoding.controller import Controller
from thrifty.decoding.draft import Draft, choose_drafted, layout
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.probe import entropy
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.methods import get_method
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace

TREE = Draft([5, 6, 7, 8, 9, 10], [-1, -1, 0, 0, 2, 1])
"""5 (7 (9), 8) and 6 (10)."""


class Scripted:
    """Guesses what was written before, wrong in every third place if asked to, with a wrong sibling before each."""

    def __init__(self, texts: Mapping[tuple[str, int], Sequence[int]], wrong: str = "never", length: int = 6) -> None:
        self.texts, self.wrong, self.length = texts, wrong, length
        self.drafted = self.taken = 0

    def propose(self, rows: Sequence[Row]) -> list[Draft]:
        return [self.of(row) for row in rows]

    def of(self, row: Row) -> Draft:
        ahead = list(self.texts[row.job.problem.id, row.job.sample])[len(row.ids) :][: self.length]
        if self.wrong == "always":
            ahead = [token ^ 2 for token in ahead]
        elif self.wrong == "sometimes":
            ahead = [token ^ 1 if (len(row.ids) + i) % 3 == 0 else token for i, token in enumerate(ahead)]
        tokens, parents, parent = list[int](), list[int](), -1
        for token in ahead:
            tokens += [token ^ 1, token]
            parents += [parent, parent]
            parent = len(tokens) - 1
        return Draft(tokens, parents)

    def observe(self, rows: Sequence[Row], written: Sequence[int], probabilities: Tensor) -> None:
        assert probabilities.shape[0] == len(rows)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(rows), dtype=probabilities.dtype))

    def accepted(self, row: Row, drafted: int, accepted: int) -> None:
        self.drafted += drafted
        self.taken += accepted


class Watch(Controller):
    """Notes the entropy and the state that each token of a row was chosen by."""

    taps = (1,)

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        for row, nats in zip(rows, entropy(logits).tolist(), strict=True):
            row.events.setdefault("nats", []).append(round(nats, 9))
        return logits

    def see_hidden(self, rows: Sequence[Row], hidden: Mapping[int, Tensor]) -> None:
        for row, state in zip(rows, hidden[1], strict=True):
            row.events.setdefault("states", []).append(round(float(state.sum()), 6))


def run(model: TorchModel, spec: str, settings: Settings, drafter: Scripted | None, count: int = 4) -> list[Trace]:
    parts = get_method(spec).parts
    jobs = jobs_for(load_task("mix").problems(count, seed=4), 2)
    controllers = [Watch(), *(c for part in parts for c in part.controllers(model))]

    def plan(job: Job) -> Plan:
        return Plan(model.render(job.problem.messages), controllers, drafter=drafter)

    traces = decode(model, jobs, settings, plan, spec)
    return sorted(traces, key=lambda trace: (trace.problem_id, trace.sample))


def ids(trace: Trace) -> list[int]:
    return [token for s in trace.segments if s.kind != "probe" for token in s.ids]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("spec", ["vanilla", "cap(budget=40)", "cgrs", "first-try", "s1(minimum=90)"])
def test_a_draft_changes_no_token_and_nothing_that_controllers_see(
    pebble64: TorchModel, spec: str, temperature: float
) -> None:
    settings = Settings(max_tokens=120, temperature=temperature, batch_size=5)
    plain = run(pebble64, spec, settings, None)
    texts = {(trace.problem_id, trace.sample): ids(trace) for trace in plain}
    for wrong in ("never", "sometimes", "always"):
        drafter = Scripted(texts, wrong)
        drafted = run(pebble64, spec, settings, drafter)
        for one, other in zip(plain, drafted, strict=True):
            assert ids(one) == ids(other)
            assert one.segments == other.segments
            assert one.events["nats"] == pytest.approx(other.events["nats"], abs=1e-6)
            assert one.events["states"] == pytest.approx(other.events["states"], abs=1e-4)
            assert (one.stop_reason, one.closed_by, one.answer) == (other.stop_reason, other.closed_by, other.answer)
            assert one.usage.total == other.usage.total
        passes = [sum(trace.usage.forward_passes for trace in traces) for traces in (plain, drafted)]
        if wrong == "never":
            assert passes[1] < 0.4 * passes[0]
            assert drafter.taken > 0
        elif wrong == "sometimes":
            assert passes[1] < 0.8 * passes[0]
        else:
            assert drafter.taken <= sum(trace.usage.injected for trace in drafted)  # what is forced is drafted as well
            assert sum(trace.usage.drafted for trace in drafted) > 0
            assert sum(t.usage.flops for t in drafted) > sum(t.usage.flops for t in plain)


@torch.inference_mode()
def test_following_a_tree_is_appending_its_tokens(toy: TorchModel) -> None:
    prompts = [[3, 4, 5], [9, 8, 7, 6, 5], [2]]
    for path in ([5, 7, 9], [6, 10], [5, 8], [5], []):
        drafted, plain = Session(toy), Session(toy)
        for session in (drafted, plain):
            session.add(prompts)
        drafted.append_drafted(torch.tensor([11, 12, 13]), [TREE, Draft([6, 10], [-1, 0]), Draft([], [])])
        plain.append(torch.tensor([11, 12, 13]))
        for token in path:
            assert drafted.follow([0], [[token]]) == [1]
            plain.append([[token], [], []])
        torch.testing.assert_close(drafted.logits, plain.logits)
        assert drafted.lengths == plain.lengths
        assert drafted.follow([0, 1, 2], [[1]] * 3) == [0] * 3
        for session in (drafted, plain):
            session.append(torch.tensor([14, 15, 16]))
        torch.testing.assert_close(drafted.logits, plain.logits)


def test_layout_of_a_tree() -> None:
    depths, visible = layout([TREE, Draft([], [])], 7, torch.device("cpu"))
    assert depths.tolist() == [[0, 1, 1, 2, 2, 3, 2], [0] * 7]
    seen = [{j for j in range(7) if visible[0, i, j]} for i in range(7)]
    assert seen == [{0}, {0, 1}, {0, 2}, {0, 1, 3}, {0, 1, 4}, {0, 1, 3, 5}, {0, 2, 6}]
    assert torch.equal(visible[1], torch.eye(7, dtype=torch.bool))


def test_a_clipped_draft_keeps_what_leads_to_what_stays() -> None:
    clipped = Draft(TREE.tokens, TREE.parents, {-1: {5: 1.0}, 2: {9: 1.0}, 0: {7: 1.0}}).clipped(2)
    assert (clipped.tokens, clipped.parents) == ([5, 6, 7, 8, 10], [-1, -1, 0, 0, 1])
    assert clipped.chances == {-1: {5: 1.0}, 2: {9: 1.0}, 0: {7: 1.0}}
    assert TREE.clipped(3) is TREE
    assert len(TREE.clipped(0)) == 0


@given(st.lists(st.integers(-1, 30), min_size=1, max_size=12))
def test_depths_and_children_agree(parents: list[int]) -> None:
    valid = [min(parent, node - 1) for node, parent in enumerate(parents)]
    draft = Draft(range(len(valid)), valid)
    for node, parent in enumerate(valid):
        assert draft.depths[node] == 1 + (draft.depths[parent] if parent >= 0 else 0)
        assert draft.children[parent][node] == node


def test_a_drafted_choice_is_distributed_as_any_other() -> None:
    p = torch.tensor([0.5, 0.3, 0.2])
    q = {0: 0.6, 1: 0.4}
    counts: Counter[int] = Counter()
    n = 20_000
    for key in range(n):
        order = [0, 1] if key % 10 < 6 else [1, 0]  # as drawn from q without replacement
        counts[choose_drafted(p, order, q, key * 7919 + 13, key % 50)] += 1
    chi_square = sum((counts[x] - n * float(p[x])) ** 2 / (n * float(p[x])) for x in range(3))
    assert chi_square < 16.3  # 0.03% of the time by chance


@pytest.mark.parametrize("order", list(permutations([0, 1])))
def test_worked_numbers_of_one_choice(order: tuple[int, int]) -> None:
    # order (0, 1): 0 with .5 / .6; else the rest is all token 2. Order (1, 0): 1 with .3 / .4, else token 2
    p, q, n = torch.tensor([0.5, 0.3, 0.2]), {0: 0.6, 1: 0.4}, 6000
    counts = Counter(choose_drafted(p, order, q, key, 0) for key in range(n))
    first = {0: 0.8333, 1: 0.75}[order[0]]
    assert counts[order[0]] / n == pytest.approx(first, abs=0.02)
    assert counts[2] / n == pytest.approx(1 - first, abs=0.02)
