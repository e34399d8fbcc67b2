"""Concept tokens: worked numbers of the filters, mixtures of real embeddings, and rows that are fed vectors."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GraniteConfig, GraniteForCausalLM, PreTrainedModel

from conftest import make_toy
from endless import make_endless
from thrifty.decoding import concept
from thrifty.decoding.batch import DecodeBatch
from thrifty.decoding.concept import Concept, mix, mix_all
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Problem

P = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
PLAIN = Settings(max_tokens=60, answer_reserve=0, loop_stop=False)


def test_worked_numbers_of_the_filters() -> None:
    assert Concept.of(P, top_k=3).weights[0].tolist() == pytest.approx([0.5263, 0.3158, 0.1579], abs=1e-4)
    both = Concept.of(P, top_k=3, top_p=0.95)
    assert both.weights[0].tolist() == pytest.approx([0.5263, 0.3158, 0.1579], abs=1e-4)
    assert float(both.weights[0, :2].sum()) == pytest.approx(0.8421, abs=1e-4)
    # renormalised after top-k: .8 of the whole is below .82, .8421 of what is left is not
    assert Concept.of(P, top_k=3, top_p=0.82).weights[0].tolist() == pytest.approx([0.625, 0.375, 0.0])
    assert Concept.of(P, top_p=0.82).weights[0].tolist() == pytest.approx([10 / 19, 6 / 19, 3 / 19, 0.0])
    every = Concept.of(P, top_k=3, top_p=0.95, min_p=0.5)
    assert every.weights[0].tolist() == pytest.approx([0.625, 0.375, 0.0])
    assert every.ids[0].tolist() == [0, 1, 2]


def test_a_min_p_of_one_leaves_the_likeliest_and_of_equals_the_first_leads() -> None:
    assert Concept.of(P.flip(-1), min_p=1.0).top(4).weights[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert Concept.of(P.flip(-1), min_p=1.0).ids[0, 0] == 3
    assert Concept.of(torch.full((1, 6), 1 / 6)).ids[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_top_is_renormalised_and_no_more_than_there_is() -> None:
    assert Concept.of(P).top(2).weights[0].tolist() == pytest.approx([0.625, 0.375])
    assert Concept.of(P).top(99).weights.shape == (1, 4)
    turned = Concept.of(P).reweighted(torch.tensor([[1.0, 2.0, 4.0, 1.0]]))
    assert turned.ids[0].tolist() == [2, 1, 0, 3]
    assert turned.weights[0].tolist() == [0.5, 0.25, 0.125, 0.125]


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=12), st.integers(0, 14), st.floats(0.01, 1), st.floats(0, 1))
def test_weights_are_a_distribution_led_by_the_arg_max(
    logits: list[float], top_k: int, top_p: float, min_p: float
) -> None:
    probabilities = torch.softmax(torch.tensor([logits], dtype=torch.float64), -1)
    found = Concept.of(probabilities, top_k, top_p, min_p)
    weights = found.weights[0].tolist()
    assert sum(weights) == pytest.approx(1)
    assert weights == sorted(weights, reverse=True)
    assert len(set(found.ids[0].tolist())) == len(weights) <= (top_k or len(logits))
    assert found.ids[0, 0] == probabilities[0].argmax()
    first = found.weights[0, 0] / probabilities[0].max()
    for weight, token in zip(weights, found.ids[0].tolist(), strict=True):  # proportions stay
        assert weight == 0 or weight == pytest.approx(float(first * probabilities[0, token]), rel=1e-6)


# -- Mixtures --------------------------------------------------------------------------------------------------


def scaled_model(kind: type[PreTrainedModel]) -> TorchModel:
    """Return a tiny model that scales its embeddings, within the module that looks them up or behind it."""
    toy = make_toy()
    sizes = {
        "vocab_size": len(toy.tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    }  # fmt: skip
    torch.manual_seed(3)
    if kind is Gemma3ForCausalLM:
        network = kind(Gemma3TextConfig(**sizes, sliding_window=16))
    else:
        network = kind(GraniteConfig(**sizes, embedding_multiplier=7.0))
    return TorchModel(network.double().eval(), toy.tokenizer, "scaled")


@torch.inference_mode()
@pytest.mark.parametrize("kind", [None, Gemma3ForCausalLM, GraniteForCausalLM])
def test_a_mixture_of_one_token_reads_as_that_token(
    kind: type[PreTrainedModel] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concept, "PART", 100)  # so that the vocabulary has several parts, the last one smaller
    model = scaled_model(kind) if kind else make_toy()
    tokens = torch.tensor([17, 311, 5])
    one_hot = torch.nn.functional.one_hot(tokens, model.vocabulary_size).double()
    plain = Session(model)
    plain.add([[3, 4, 5], [9, 8], [2]])
    copies = [plain.fork([0, 1, 2]) for _ in range(2)]
    plain.append(tokens)
    copies[0].append_embeddings(mix(model, Concept.of(one_hot).top(3)))
    copies[1].append_embeddings(mix_all(model, one_hot))
    for copy in copies:
        torch.testing.assert_close(copy.logits, plain.logits)


@torch.inference_mode()
def test_mixtures_are_weighted_means_of_embeddings() -> None:
    model = make_toy()
    table = model.network.get_input_embeddings().weight
    table[:4] = torch.eye(4, table.shape[1], dtype=table.dtype)
    found = mix(model, Concept.of(P.double(), top_k=3, top_p=0.95, min_p=0.5))
    assert found[0, :5].tolist() == pytest.approx([0.625, 0.375, 0, 0, 0])
    p = torch.zeros(1, model.vocabulary_size, dtype=torch.float64)
    p[0, :3] = torch.tensor([0.7, 0.2, 0.1])
    assert mix_all(model, p)[0, :4].tolist() == pytest.approx([0.7, 0.2, 0.1, 0])
    q = torch.softmax(torch.randn(3, model.vocabulary_size, dtype=torch.float64), -1)
    torch.testing.assert_close(mix(model, Concept.of(q)), mix_all(model, q))
    torch.testing.assert_close(mix_all(model, q), q @ table)


# -- Rows that read vectors ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endless() -> TorchModel:
    return make_endless()


class Feed(Controller):
    """Feed every token that the model wrote, as its own embedding times a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if row.newest_kind in ("thinking", "answer"):
                batch.feed(row, self.factor * batch.model.embed(torch.tensor(row.ids[-1])))


class Edit(Controller):
    """Write something behind the first tokens of a row when it has six."""

    def __init__(self, start: int) -> None:
        self.start = start

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if len(row.ids) == 6:
                batch.rewrite(row, self.start, [("Wait.", True), (row.ids[self.start :], False)])


class Fork(Controller):
    """Keep the logits that a copy of a row has behind its newest token."""

    logits: Tensor

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        self.logits = batch.fork(rows, 1).logits


def decode(model: TorchModel, steps: int, *controllers: Controller) -> tuple[Row, Tensor]:
    """Write some tokens of a row; return it and the logits behind them."""
    prompt = model.render(({"role": "user", "content": "2 + 5?"},))
    row = Row(Job(Problem.ask("?")), PLAIN, model, 7, model.encode_prompt(prompt), model.tracker.start(prompt))
    batch = DecodeBatch(model)
    batch.admit([row], [controllers])
    for _ in range(steps):
        batch.step()
    return row, batch.session.logits


def test_a_row_fed_its_own_embeddings_goes_on_as_it_would(endless: TorchModel) -> None:
    plain, expected = decode(endless, 9)
    fed, logits = decode(endless, 9, Feed(1.0))
    assert fed.ids == plain.ids
    torch.testing.assert_close(logits, expected)
    assert (fed.usage.latent_steps, fed.usage.thinking) == (9, 0)
    assert fed.thinking_tokens == plain.thinking_tokens == 9
    assert fed.usage.total == plain.usage.total
    (segment,) = fed.trace("m").segments
    assert (segment.kind, segment.phase) == ("latent", "thinking")


def test_a_copy_of_a_fed_row_has_read_the_vector(endless: TorchModel) -> None:
    fork = Fork()
    _, logits = decode(endless, 5, Feed(1.5), fork)
    torch.testing.assert_close(fork.logits, logits)


@pytest.mark.parametrize("start", [4, 6])
def test_what_was_read_as_vectors_stays_so_when_the_text_behind_it_is_edited(endless: TorchModel, start: int) -> None:
    row, logits = decode(endless, 6, Feed(1.5), Edit(start))
    hint = endless.encode("Wait.")
    latent = min(start, 5)  # the sixth was to be read as a vector, and is read as the token that it is
    kinds = [kind for kind, count in (("latent", latent), ("thinking", start - latent)) for _ in range(count)]
    kinds += ["injected"] * len(hint) + ["thinking"] * (6 - start)
    assert [s.kind for s in row.trace("m").segments for _ in s.ids] == kinds
    usage = row.usage
    assert (usage.latent_steps, usage.injected, usage.reread) == (latent, len(hint), 6 - start)
    assert usage.thinking == 6 - latent
    by_hand = Session(endless)
    by_hand.add([row.prompt_ids])
    for token in row.ids[:latent]:
        by_hand.append_embeddings(1.5 * endless.embed(torch.tensor([token])))
    by_hand.append([row.ids[latent:]])
    torch.testing.assert_close(by_hand.logits, logits)
