"""Soft Thinking: the card's worked numbers, the algorithm written out, its no-op settings, noise, and company."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from endless import make_endless
from thrifty.decoding.concept import Concept
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.probe import entropy
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods import get_method
from thrifty.methods.latent.soft_thinking import SoftThinking, dirichlet, gumbel_softmax, low_steps
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace

WIDE = "soft-thinking(temperature=1.5,top_p=1.0,min_p=0.0,tau=0.0)"
"""Mixes several tokens at every step, however sure the model is."""


@pytest.fixture(scope="module")
def endless() -> TorchModel:
    return make_endless()


def solve(model: TorchModel, spec: str, count: int = 3, watch: Sequence[Controller] = (), **values: Any) -> list[Trace]:
    settings = Settings(**{"max_tokens": 60, "loop_stop": False, **values})
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return sorted(get_method(spec).solve(model, jobs, settings, watch), key=lambda trace: trace.problem_id)


def steered(model: TorchModel, controllers: Sequence[Controller], **values: Any) -> list[Trace]:
    """Answer the first problem with controllers in an order of their own."""

    def plan(job: Job) -> Plan:
        return Plan(model.render(job.problem.messages), controllers)

    jobs = jobs_for(load_task("mix").problems(limit=1, seed=5), 1)
    return list(decode(model, jobs, Settings(**{"max_tokens": 60, "loop_stop": False, **values}), plan, "m"))


def response(trace: Trace) -> list[tuple[str, int]]:
    """Return the kind and id of every token of a response."""
    return [(s.kind, i) for s in trace.segments if s.kind != "probe" for i in s.ids]


def ids(trace: Trace) -> list[int]:
    return [token for _, token in response(trace)]


# -- Worked numbers --------------------------------------------------------------------------------------------


def test_worked_numbers_of_the_concept_token() -> None:
    concept = Concept.of(torch.tensor([[0.5, 0.3, 0.15, 0.05]]), top_k=3, top_p=0.95, min_p=0.5).top(10)
    assert concept.weights[0].tolist() == pytest.approx([0.625, 0.375, 0.0])
    mixture = concept.weights @ torch.eye(4)[concept.ids[0]]
    assert mixture[0].tolist() == pytest.approx([0.625, 0.375, 0.0, 0.0])
    assert int(concept.ids[0, 0]) == 0


def test_worked_numbers_of_cold_stop() -> None:
    low, counts = np.zeros(1, dtype=np.int64), []
    for nats in (0.4, 0.6, 0.4, 0.3):
        low = low_steps(low, np.array([nats]), tau=0.5)
        counts.append(int(low[0]))
    assert counts == [1, 0, 1, 2]
    assert low_steps(np.array([3, 3]), np.array([0.49, 0.5]), 0.5).tolist() == [4, 0]  # row by row


def test_worked_numbers_of_the_entropy() -> None:
    assert float(entropy(torch.zeros(4))) == pytest.approx(1.3863, abs=1e-4)
    assert float(entropy(torch.tensor([0.0, -1e9, -1e9]))) == pytest.approx(0)


# -- The algorithm ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def written_out(model: TorchModel, prompt: str, method: SoftThinking, steps: int) -> tuple[list[int], list[bool]]:
    """Return the tokens of a thought, and where several tokens were mixed: no cache, and the filters of others."""
    inputs = model.embed(torch.tensor(model.encode_prompt(prompt)))
    written, mixed = list[int](), list[bool]()
    for _ in range(steps):
        scores = model.network(inputs_embeds=inputs[None]).logits[0, -1:, : model.vocabulary_size]
        scores = scores / method.temperature
        filters = [TopKLogitsWarper(method.top_k), TopPLogitsWarper(method.top_p), MinPLogitsWarper(method.min_p)]
        for keep in filters:
            scores = keep(None, scores)
        weights, tokens = torch.softmax(scores, -1)[0].topk(method.n)
        vector = (weights / weights.sum()) @ model.embed(tokens)
        written.append(int(tokens[0]))
        mixed.append(bool(weights[1] > 0))
        inputs = torch.cat([inputs, vector[None]])
    return written, mixed


@pytest.mark.parametrize("options", ["n=10", "n=3,top_k=8,top_p=0.7", "temperature=2.5,top_p=1.0,min_p=0.2"])
@pytest.mark.parametrize("temperature", [0.0, 1.1])
def test_it_does_what_the_card_says(endless: TorchModel, options: str, temperature: float) -> None:
    spec = f"soft-thinking(tau=0.0,{options})"
    (method,) = get_method(spec).parts
    assert isinstance(method, SoftThinking)
    steps = 24
    traces = solve(endless, spec, 2, max_tokens=steps, answer_reserve=0, temperature=temperature)
    problems = sorted(load_task("mix").problems(limit=2, seed=5), key=lambda problem: problem.id)
    for trace, problem in zip(traces, problems, strict=True):
        tokens, mixed = written_out(endless, endless.render(problem.messages), method, steps)
        assert response(trace) == [("latent" if m else "thinking", t) for t, m in zip(tokens, mixed, strict=True)]
        assert trace.usage.latent_steps == sum(mixed) > 0
        assert trace.usage.total == trace.usage.prompt + steps


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_no_mixtures_equal_vanilla_token_for_token(pebble64: TorchModel, temperature: float) -> None:
    plain, none = (solve(pebble64, spec, temperature=temperature) for spec in ("vanilla", "soft-thinking(n=0)"))
    assert [response(t) for t in none] == [response(t) for t in plain]


@pytest.mark.parametrize("spec", ["soft-thinking(n=1)", "soft-thinking(temperature=0.0)", "soft-thinking(min_p=1.0)"])
def test_mixtures_of_one_token_think_as_the_greedy_model(pebble64: TorchModel, spec: str) -> None:
    greedy = solve(pebble64, "vanilla")
    assert [response(t) for t in solve(pebble64, spec)] == [response(t) for t in greedy]
    for trace, plain in zip(solve(pebble64, spec, temperature=0.9), greedy, strict=True):
        assert trace.thinking_text == plain.thinking_text


@pytest.mark.parametrize("options", ["tau=0.2,k_stop=4", "noise=gumbel,n=5", "noise=dirichlet,temperature=4.0"])
def test_neither_batch_nor_neighbours_matter(pebble64: TorchModel, options: str) -> None:
    spec = f"soft-thinking(top_p=1.0,min_p=0.0,{options})"
    one, many = (solve(pebble64, spec, max_tokens=50, temperature=0.7, batch_size=size) for size in (1, 2))
    assert [response(t) for t in one] == [response(t) for t in many]
    assert any(t.usage.latent_steps for t in one)


def test_the_answer_is_decoded_by_the_settings_of_the_run(pebble64: TorchModel) -> None:
    spec = "cap(budget=8)+soft-thinking(n=1)"
    greedy, sampled = solve(pebble64, spec), solve(pebble64, spec, temperature=50.0)
    assert [t.thinking_text for t in sampled] == [t.thinking_text for t in greedy]
    assert [t.answer_text for t in sampled] != [t.answer_text for t in greedy]


# -- Cold Stop -------------------------------------------------------------------------------------------------


def test_cold_stop_replaces_the_token_of_the_step_that_is_one_too_many(endless: TorchModel) -> None:
    free = solve(endless, "soft-thinking(tau=0.0)")
    for trace, plain in zip(solve(endless, "soft-thinking(tau=99.0,k_stop=7)"), free, strict=True):
        assert trace.closed_by == "soft-thinking"
        assert trace.usage.thinking + trace.usage.latent_steps == 6
        assert ids(trace)[:6] == ids(plain)[:6]
        closer = "".join(s.text for s in trace.segments if s.kind == "injected")
        assert closer.strip("\n") == endless.think.close
        # in the answer the same counter, begun anew, ends the response
        assert (trace.usage.answer, trace.stop_reason) == (7, "loop")


class Quiet(Controller):
    """Notes the entropies at the temperature of the mixture while the only row thinks."""

    def __init__(self) -> None:
        self.nats: list[float] = []

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        if rows[0].thinking:
            self.nats.append(float(entropy(logits[0] / 0.6)))
        return logits


def test_cold_stop_waits_for_quiet_steps_in_a_row(pebble64: TorchModel) -> None:
    (free,) = solve(pebble64, "soft-thinking(tau=0.0)", 1)
    quiet = Quiet()
    (seen,) = steered(pebble64, [quiet, *get_method("soft-thinking(tau=0.0)").parts[0].controllers(pebble64)])
    assert ids(seen) == ids(free)
    tau = sorted(quiet.nats)[len(quiet.nats) // 2] + 1e-9  # at which half of the steps are quiet
    runs = [0]
    for nats in quiet.nats:
        runs.append(runs[-1] + 1 if nats < tau else 0)
    longest = max(runs)
    step = runs.index(longest)  # counted from 1
    (stopped,) = solve(pebble64, f"soft-thinking(tau={tau!r},k_stop={longest})", 1)
    assert stopped.closed_by == "soft-thinking"
    assert stopped.usage.thinking + stopped.usage.latent_steps == step - 1
    assert ids(stopped)[: step - 1] == ids(free)[: step - 1]
    (patient,) = solve(pebble64, f"soft-thinking(tau={tau!r},k_stop={longest + 1})", 1)
    assert patient.thinking_text == free.thinking_text


# -- Noise -----------------------------------------------------------------------------------------------------


def draws(n: int) -> tuple[Concept, np.ndarray, np.ndarray]:
    """Return the same concept for many rows, and their keys and counters."""
    concept = Concept(torch.tensor([[0.6, 0.3, 0.1, 0.0]]).repeat(n, 1), torch.tensor([[9, 4, 7, 1]]).repeat(n, 1))
    keys = (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return concept, keys, np.full(n, 12, dtype=np.uint64)


def by_token(concept: Concept) -> Tensor:
    """Return the weights of tokens 9, 4, 7 and 1."""
    return torch.zeros(len(concept.ids), 10).scatter(-1, concept.ids, concept.weights)[:, [9, 4, 7, 1]]


@pytest.mark.parametrize("noise", [dirichlet, gumbel_softmax])
def test_noise_gives_distributions_of_each_rows_own_stream(noise: Any) -> None:
    concept, keys, counters = draws(50)
    drawn = noise(concept, 0.7, keys, counters)
    torch.testing.assert_close(drawn.weights.sum(-1), torch.ones(50))
    assert bool((drawn.weights.diff(dim=-1) <= 0).all())
    assert float(by_token(drawn)[:, 3].max()) == 0  # what has no weight gets none
    assert len({tuple(row) for row in by_token(drawn).tolist()}) > 40
    part = slice(20, 30)
    alone = noise(Concept(concept.weights[part], concept.ids[part]), 0.7, keys[part], counters[part])
    torch.testing.assert_close(by_token(alone), by_token(drawn)[part])
    later = noise(concept, 0.7, keys, counters + np.uint64(1))
    assert not torch.allclose(by_token(later), by_token(drawn))


def test_a_cold_gumbel_softmax_samples_and_a_hot_one_is_even() -> None:
    concept, keys, counters = draws(4000)
    leaders = Counter(gumbel_softmax(concept, 1e-3, keys, counters).ids[:, 0].tolist())
    assert [leaders[token] / 4000 for token in (9, 4, 7)] == pytest.approx([0.6, 0.3, 0.1], abs=0.04)
    even = by_token(gumbel_softmax(concept, 1e4, keys, counters))[:, :3]
    torch.testing.assert_close(even, torch.full_like(even, 1 / 3), atol=0.01, rtol=0)


def test_dirichlet_draws_lie_around_the_weights() -> None:
    concept, keys, counters = draws(4000)
    wanted = torch.tensor([0.6, 0.3, 0.1, 0.0])
    for alpha in (0.5, 5.0):
        drawn = by_token(dirichlet(concept, alpha, keys, counters))
        torch.testing.assert_close(drawn.mean(0), wanted, atol=0.03, rtol=0)
        torch.testing.assert_close(drawn.var(0), wanted * (1 - wanted) / (alpha + 1), atol=0.02, rtol=0)
    tiny = dirichlet(concept, 1e-9, keys, counters)  # every draw is too small for a float
    assert bool(torch.isfinite(tiny.weights).all())


@pytest.mark.parametrize("noise", ["gumbel", "dirichlet"])
def test_noise_changes_what_is_written(endless: TorchModel, noise: str) -> None:
    plain, noisy = (solve(endless, f"soft-thinking(tau=0.0,noise={n})", 1)[0] for n in ("none", noise))
    assert ids(plain) != ids(noisy)
    other = solve(endless, f"soft-thinking(tau=0.0,noise={noise})", 1, seed=1)[0]
    assert ids(other) != ids(noisy)


# -- In company ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["cap(budget=13)", "first-try"])
def test_it_may_stand_on_either_side_of_what_closes_the_thinking(pebble64: TorchModel, other: str) -> None:
    left, right = solve(pebble64, f"{other}+{WIDE}", max_tokens=120), solve(pebble64, f"{WIDE}+{other}", max_tokens=120)
    assert [response(t) for t in left] == [response(t) for t in right]
    assert all(t.usage.latent_steps for t in left)
    if other != "first-try":
        assert [t.usage.thinking + t.usage.latent_steps for t in left] == [13] * 3
        assert {t.closed_by for t in left} == {"cap"}


def test_budgets_count_latent_steps(pebble64: TorchModel) -> None:
    for trace in solve(pebble64, WIDE, thinking_budget=9):
        assert trace.usage.thinking + trace.usage.latent_steps == 9
        assert (trace.usage.latent_steps, trace.closed_by) == (9, "budget")


@pytest.mark.parametrize("spec", [f"cgrs(delta=0.0)+{WIDE}", f"{WIDE}+cgrs(delta=0.0)"])
def test_probes_beside_it_are_in_the_account(pebble64: TorchModel, spec: str) -> None:
    for trace in solve(pebble64, spec, max_tokens=110):
        probes = [s for s in trace.segments if s.kind == "probe"]
        assert len(probes) == len(trace.events["cgrs"])
        assert trace.usage.probe >= sum(len(s.ids) for s in probes)
        assert trace.usage.latent_steps > 0


def test_what_is_suppressed_before_it_is_not_mixed(endless: TorchModel) -> None:
    class Leave(Controller):
        """Leaves two tokens, and at every other step one."""

        def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
            left = [30, 31] if len(rows[0].ids) % 2 else [31]
            return torch.full_like(logits, -1e9).index_copy(1, torch.tensor(left), logits[:, left])

    controllers = [Leave(), *get_method(WIDE).parts[0].controllers(endless)]
    (trace,) = steered(endless, controllers, max_tokens=12, answer_reserve=0)
    assert [kind for kind, _ in response(trace)] == ["thinking", "latent"] * 6
    assert set(ids(trace)) <= {30, 31}


def test_a_token_in_the_place_of_the_leader_is_read_as_itself(endless: TorchModel) -> None:
    class Mask(Controller):
        """Takes away what the row is led to, at every other step."""

        def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
            odd = torch.tensor([len(row.ids) % 2 == 1 for row in rows])
            return torch.where(odd[:, None], logits.scatter(-1, logits.argmax(-1, keepdim=True), -1e9), logits)

    for temperature in (0.0, 0.8):
        (trace,) = solve(endless, WIDE, 1, watch=[Mask()], max_tokens=20, answer_reserve=0, temperature=temperature)
        assert [kind for kind, _ in response(trace)] == ["latent", "thinking"] * 10


class Insert(Controller):
    """Puts words into what a row has written."""

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if len(row.ids) == 12:
                batch.rewrite(row, 8, [(" Wait,", True), (row.ids[8:], False)], aside=True)


@pytest.mark.parametrize("first", [True, False])
def test_edits_of_the_past_keep_the_account(endless: TorchModel, first: bool) -> None:
    soft = get_method(WIDE).parts[0].controllers(endless)
    (trace,) = steered(endless, [Insert(), *soft] if first else [*soft, Insert()], max_tokens=24, answer_reserve=0)
    kinds = Counter(kind for kind, _ in response(trace))
    assert kinds["injected"] == len(endless.encode(" Wait,")) == trace.usage.injected
    # what was written behind the words is read again, as the tokens that it is; the newest may still be mixed
    assert kinds["thinking"] == trace.usage.thinking == (3 if first else 4)
    assert trace.usage.latent_steps == kinds["latent"] == 24 - kinds["injected"] - kinds["thinking"]
    assert trace.usage.reread == 4


def test_only_the_first_think_block_is_soft(endless: TorchModel) -> None:
    class Reopen(Controller):
        """Closes the thinking, and opens a second block in the answer."""

        def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
            for row in rows:
                if row.thinking_tokens == 5 and row.thinking:
                    row.close_thinking("test")
                if row.usage.answer == 3 and row.phases.blocks == 1 and not row.forced:
                    row.force(row.model.think.force_open)

    (trace,) = solve(endless, WIDE, 1, watch=[Reopen()])
    written = [kind for kind, _ in response(trace)]
    assert written[:5] == ["latent"] * 5
    assert "latent" not in written[5:]
    reopened = [s for s in trace.segments if s.kind == "thinking"]
    assert sum(len(s.ids) for s in reopened) > 5


def test_end_to_end_on_the_embedded_model(pebble: TorchModel) -> None:
    for trace in solve(pebble, "soft-thinking(top_p=1.0,min_p=0.0,tau=0.05,k_stop=30)", max_tokens=120):
        usage, written = trace.usage, response(trace)
        assert usage.latent_steps > 0
        assert usage.generated + usage.latent_steps == len(written) <= 120
        assert usage.forward_passes >= usage.thinking + usage.answer + usage.latent_steps
        assert trace.closed_by is not None
        assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("n=-1", "n and top_k"),
        ("temperature=-0.1", "temperature"),
        ("top_p=0.0", "top_p"),
        ("min_p=1.5", "min_p"),
        ("tau=-1.0", "tau"),
        ("k_stop=0", "k_stop"),
        ("tau_g=0.0", "tau_g"),
        ("noise=gumbel,temperature=0.0", "noise needs"),
    ],
)
def test_options_out_of_range_are_refused(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(f"soft-thinking({options})")
    with pytest.raises(UnknownName, match="gumbel"):
        get_method("soft-thinking(noise=gauss)")
