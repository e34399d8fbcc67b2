"""R2R: the card's worked numbers, both extremes, the account, the router's inputs, and the tuning of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import make_toy
from saved_models import Tampered, saved, worse
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.probe import entropy
from thrifty.decoding.router import DIVERGENT, DROPOUT, EXPANSION, Router
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.collaborate.r2r import R2R, RouterOptions, TokenRouter, activated_parameters, log_u
from thrifty.methods.shared.divergence import Labeller
from thrifty.methods.tuning import Tuning
from thrifty.models import load_model
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Trace

PROBLEMS = list(load_task("mix").problems(limit=3, seed=5))


def solve(model: TorchModel, spec: str, count: int = 3, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 40, **values})
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs_for(PROBLEMS[:count], 1), settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[int]]:
    return {key: [token for s in trace.segments for token in s.ids] for key, trace in traces.items()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A toy with the tokens of the other one."""
    return saved(make_toy(seed=1, sharpness=30.0), tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def small_toy(small: str) -> TorchModel:
    model = load_model(small, dtype="float64")
    assert isinstance(model, TorchModel)
    return model


@pytest.fixture(scope="module")
def blurred(pebble: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pebble whose weights are blurred, so that it errs at times."""
    return saved(worse(pebble, 0.5), tmp_path_factory.mktemp("blurred"))


def untrained(small: TorchModel, large: TorchModel, path: Path, threshold: float = 0.5) -> Path:
    """Write a router that routes at random, about half of the tokens."""
    torch.manual_seed(3)
    router = Router(small.hidden_size, 12, 1, 8, normalise=True)
    values = {"small": identity(small), "sizes": router.sizes, "normalise": True, "threshold": threshold}
    made = Artefact("r2r", identity(large), values=values, networks={"router": router.state_dict()})
    return made.save(path)[0]


@pytest.fixture(scope="module")
def router(small_toy: TorchModel, toy: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(small_toy, toy, tmp_path_factory.mktemp("router") / "r2r.json")


class Scored(TokenRouter):
    """A router whose scores stand in a table."""

    def __init__(self, small: TorchModel, large: TorchModel, table: Sequence[float], window: int = 1) -> None:
        super().__init__(small, large, "router", 0.5, window)
        self.table = table
        self.led: list[bool] = []

    def scores(self, rows: Sequence[Row], logits: Tensor) -> list[float]:
        return [self.table[min(len(row.ids), len(self.table) - 1)] for row in rows]

    def leads(self, rows: Sequence[Row], logits: Tensor) -> list[bool]:
        found = super().leads(rows, logits)
        self.led += found
        return found


def routed(small: TorchModel, large: TorchModel, table: Sequence[float], window: int = 1) -> list[bool]:
    router = Scored(small, large, table, window)
    plans = [(Job(PROBLEMS[0]), Plan(large.render(PROBLEMS[0].messages), [router]))]
    list(decode_rows(small, plans, Settings(max_tokens=len(table), answer_reserve=0)))
    return router.led


def test_the_threshold_itself_routes(small_toy: TorchModel, toy: TorchModel) -> None:
    assert routed(small_toy, toy, [0.2, 0.5, 0.7]) == [False, True, True]


def test_with_a_window_the_mean_must_fall_before_the_small_model_goes_on(
    small_toy: TorchModel, toy: TorchModel
) -> None:
    assert routed(small_toy, toy, [0.4, 1.0, 0.2, 0.1]) == [False, True, False, False]
    assert routed(small_toy, toy, [0.4, 1.0, 0.2, 0.1], 3) == [False, True, True, False]
    assert routed(small_toy, toy, [0.4, 0.4, 0.4, 0.1], 3) == [False] * 4


def test_entropies_of_the_card(small_toy: TorchModel, toy: TorchModel) -> None:
    logits = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.85, 0.05, 0.05, 0.05]], dtype=torch.float64).log()
    assert entropy(logits).tolist() == pytest.approx([0.3251, 0.5875], abs=1e-4)
    method = R2R(strategy="entropy")
    scores = TokenRouter(small_toy, toy, "entropy", method.tau).scores([], logits)
    assert [score >= method.tau for score in scores] == [False, True]


def test_log_u_of_the_card(small_toy: TorchModel, toy: TorchModel) -> None:
    aleatoric, epistemic = log_u(torch.tensor([8.0, 2.0]), 2)
    assert float(aleatoric) == pytest.approx(0.4547, abs=1e-4)
    assert float(epistemic) == pytest.approx(0.1667, abs=1e-4)
    no_evidence = log_u(-torch.ones(12))
    assert [float(x) for x in no_evidence] == [0.0, 1.0]
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)) * 4
    assert TokenRouter(small_toy, toy, "log-u", 2.275).scores([], logits) == log_u(logits)[0].tolist()
    assert torch.equal(log_u(logits)[0], log_u(logits.flip(1))[0]), "the ten highest count, wherever they stand"


def test_activated_parameters_of_the_card() -> None:
    assert activated_parameters(10, 2, 1.5, 32.0) == pytest.approx({"both": 7.9, "one": 7.6})


def test_defaults_are_those_of_the_card() -> None:
    options = RouterOptions()
    assert (options.width, options.blocks, options.top, EXPANSION, DROPOUT) == (1024, 6, 100, 4, 0.1)
    assert (options.learning_rate, options.weight_decay, options.batch_size) == (5e-5, 5e-4, 1024)
    assert (options.epochs, options.patience, options.recall_factor, options.min_recall) == (50, 10, 1.0, 0.95)
    assert R2R(strategy="entropy").tau == 0.45
    assert R2R(strategy="log-u").tau == 2.275
    assert R2R(strategy="random", rate=0.25).tau == 0.75
    assert R2R(threshold=0.406).tau == 0.406


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_each_end_of_the_threshold_is_one_of_the_models(
    temperature: float, small: str, small_toy: TorchModel, toy: TorchModel
) -> None:
    large, alone = solve(toy, "vanilla", temperature=temperature), solve(small_toy, "vanilla", temperature=temperature)
    assert ids(large) != ids(alone)
    by_large = solve(toy, f"r2r(small='{small}',threshold=0)", temperature=temperature)
    by_small = solve(toy, f"r2r(small='{small}',threshold=1.01)", temperature=temperature)
    assert ids(by_large) == ids(large)
    assert ids(by_small) == ids(alone)
    for key, trace in by_small.items():
        told, usage = trace.events["r2r"], trace.usage
        assert (told["routed"], usage.helper, usage.forward_passes) == (0, 0, 0)
        assert (usage.total, usage.flops) == (alone[key].usage.total, alone[key].usage.flops)
    for key, trace in by_large.items():
        usage, plain = trace.usage, large[key].usage
        assert trace.events["r2r"]["routed"] == usage.thinking + usage.answer
        # vanilla reads each forced token in a pass of its own, the follower together with what comes next
        assert usage.forward_passes == plain.forward_passes - plain.injected
        assert (usage.prompt, usage.generated) == (plain.prompt, plain.generated)
        read = trace.events["r2r"]["large"]["read"]
        assert plain.prompt <= read <= plain.prompt + plain.injected, "its own words it knows"
        assert usage.helper == read + usage.thinking + usage.answer
        flops = trace.events["r2r"]["small"]["flops"] + trace.events["r2r"]["large"]["flops"]
        assert usage.flops == pytest.approx(flops)


@pytest.mark.parametrize("spec", ["strategy=entropy,threshold=2.9", "strategy=random,rate=0.4"])
def test_the_account_holds_what_both_models_read_and_write(spec: str, small: str, toy: TorchModel) -> None:
    shares = []
    for trace in solve(toy, f"r2r(small='{small}',{spec})").values():
        told, usage = trace.events["r2r"], trace.usage
        own, other = told["small"], told["large"]
        assert own["written"] + other["written"] == usage.thinking + usage.answer
        assert usage.total == own["read"] + own["written"] + other["read"] + other["written"]
        assert usage.helper == other["read"] + other["written"]
        assert own["read"] == usage.prompt + usage.injected + other["written"], "it reads what it did not write"
        assert usage.flops == pytest.approx(own["flops"] + other["flops"])
        assert usage.forward_passes == other["passes"] == told["routed"]
        assert told["routed_share"] == pytest.approx(told["routed"] / (usage.thinking + usage.answer), abs=1e-4)
        assert Trace.from_json(trace.to_json()) == trace
        shares.append(told["routed_share"])
    assert max(shares) > 0
    assert min(shares) < 1


def test_the_parameters_that_count_are_those_of_who_wrote(small_toy: TorchModel, toy: TorchModel) -> None:
    small, method = TorchModel(small_toy.network, small_toy.tokenizer, "small"), R2R(strategy="random", rate=0.4)
    small.parameters = 1000  # else the two models are of one size
    handover = method.handover(small, toy)
    plans = [(Job(PROBLEMS[0]), Plan(toy.render(PROBLEMS[0].messages), [handover]))]
    (row,) = decode_rows(small, plans, Settings(max_tokens=24, answer_reserve=0))
    told, (own, other) = method.events(row, handover), handover.shares(row)
    assert 0 < told["routed"] == other.written < own.written + other.written
    found = activated_parameters(own.written + other.written, other.written, 1000, toy.parameters)
    assert told["activated_parameters"] == {name: round(value) for name, value in found.items()}


def test_the_rate_of_random_is_kept(small: str, small_toy: TorchModel, toy: TorchModel) -> None:
    assert ids(solve(toy, f"r2r(small='{small}',strategy=random,rate=0)")) == ids(solve(small_toy, "vanilla"))
    assert ids(solve(toy, f"r2r(small='{small}',strategy=random,rate=1)")) == ids(solve(toy, "vanilla"))
    traces = solve(toy, f"r2r(small='{small}',strategy=random,rate=0.5)").values()
    written = sum(t.usage.thinking + t.usage.answer for t in traces)
    assert 0.3 < sum(t.events["r2r"]["routed"] for t in traces) / written < 0.7


@pytest.mark.parametrize("spec", ["router='{router}'", "strategy=entropy,window=3", "strategy=random,rate=0.4"])
def test_the_batch_changes_nothing(spec: str, small: str, router: Path, toy: TorchModel) -> None:
    method = f"r2r(small='{small}',{spec.format(router=router)})"
    found = [
        {k: (ids({k: t})[k], t.events["r2r"], t.usage.total) for k, t in traces.items()}
        for traces in (solve(toy, method, batch_size=size, temperature=0.7) for size in (1, 3))
    ]
    assert found[0] == found[1]


def test_the_router_sees_at_work_what_it_is_trained_on(
    small: str, small_toy: TorchModel, toy: TorchModel, router: Path
) -> None:
    """Off by one, the router would be ruined in silence: what it is asked must equal a plain reading of the result."""
    handover = R2R(small=small, router=str(router)).handover(small_toy, toy)
    assert isinstance(handover, TokenRouter)
    assert handover.router is not None
    seen: list[tuple[Tensor, ...]] = []
    handle = handover.router.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    plans = [(Job(PROBLEMS[0]), Plan(toy.render(PROBLEMS[0].messages), [handover]))]
    (row,) = decode_rows(small_toy, plans, Settings(max_tokens=24, answer_reserve=0))
    handle.remove()
    other = handover.follower.share(row).written
    assert 0 < other < len(row.ids), "both write"
    read = Labeller(small_toy, toy, load_task("mix"), Settings(), "none", None, 8).read(row.prompt_ids, row.ids)
    assert len(seen) == len(read)
    torch.testing.assert_close(torch.cat([hidden for hidden, _, _ in seen]), read.hidden)
    torch.testing.assert_close(torch.cat([token for _, token, _ in seen]), small_toy.embed(read.tokens).float())
    torch.testing.assert_close(torch.cat([top for _, _, top in seen]), read.top)


def test_a_routed_share_falls_with_the_threshold(small: str, router: Path, toy: TorchModel) -> None:
    shares = []
    for threshold in (0.001, 0.5, 0.999):
        traces = solve(toy, f"r2r(small='{small}',router='{router}',threshold={threshold})", 2).values()
        shares.append(sum(t.events["r2r"]["routed"] for t in traces))
    assert shares[0] >= shares[1] >= shares[2]
    assert shares[0] > shares[2]


def test_end_to_end_on_the_embedded_model(pebble: TorchModel, blurred: str, tmp_path: Path) -> None:
    other = load_model(blurred)
    assert isinstance(other, TorchModel)
    path = untrained(other, pebble, tmp_path / "r2r.json")
    for spec in (f"router='{path}'", "strategy=entropy"):
        for trace in solve(pebble, f"r2r(small='{blurred}',{spec})", 2, max_tokens=90).values():
            assert trace.answer_text.strip()
            assert trace.usage.helper == trace.events["r2r"]["large"]["read"] + trace.events["r2r"]["routed"]


def test_beside_itself_the_model_is_itself(pebble64: TorchModel) -> None:
    plain, routed = (
        solve(pebble64, spec, 2, max_tokens=60) for spec in ("vanilla", "r2r(small=pebble,strategy=entropy)")
    )
    assert ids(plain) == ids(routed)


def tuning(model: TorchModel, small: str, **options: Any) -> Tuning:
    sizes = {"width": 8, "blocks": 1, "top": 6, "epochs": 3, "learning_rate": 1e-3, "batch_size": 32}
    settings = Settings(max_tokens=24, answer_reserve=0, batch_size=10)
    return Tuning("r2r", model, load_task("mix"), settings, 10, {"small": small, **sizes, **options})


@pytest.fixture(scope="module")
def ending() -> TorchModel:
    """A toy that comes to an end before long, at every twelfth position."""
    model = make_toy(sharpness=16.0)
    return Tampered(model, lambda position, _: min(model.eos_ids) if position % 12 == 0 else None)


@pytest.fixture(scope="module")
def like_ending(ending: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that agrees with it at times."""
    return saved(worse(ending, 0.05), tmp_path_factory.mktemp("like"))


@pytest.mark.parametrize(("verifier", "classes"), [("numbers", 3), ("none", 1)])
def test_tuning_writes_a_router_that_the_method_takes(
    verifier: str, classes: int, ending: TorchModel, like_ending: str, tmp_path: Path
) -> None:
    artefact = R2R.tune(tuning(ending, like_ending, verifier=verifier, classes=classes))
    report = artefact.report
    assert report["responses"] == {"answered": 10, "finished": 10}
    labels = report["labels"]
    assert labels["identical"] > 0
    assert labels["neutral"] + labels["divergent"] > 0
    assert labels["neutral"] == 0 or verifier != "none"
    assert artefact.settings["verifier"] == verifier
    assert report["router_on_held_out"]["n"] > 0
    path = artefact.save(tmp_path / "router.json")[0]
    method = R2R(small=like_ending, router=str(path))
    assert 0.01 <= method.tau == artefact.values["threshold"] <= 0.99
    assert R2R(small=like_ending, router=str(path), threshold=0.2).tau == 0.2
    for trace in solve(ending, f"r2r(small='{like_ending}',router='{path}')", 2).values():
        assert trace.events["r2r"]["small"]["model"] == like_ending


def test_tuning_says_what_is_missing(toy: TorchModel, small: str) -> None:
    never = Tampered(toy, lambda _, best: best ^ 1 if best in toy.eos_ids else None)
    with pytest.raises(ThriftyError, match="--max-tokens"):
        R2R.tune(tuning(never, small))
    for options, message in (
        ({"top": 100_000}, "lower top"),
        ({"verifier": "oracle"}, "unknown verifier"),
        ({"classes": 2}, "1 or 3"),
        ({"width": 0}, "at least 1"),
        ({"depth": 3}, "no option 'depth'"),
        ({"strategy": "entropy"}, "no option 'strategy'"),
    ):
        with pytest.raises(ThriftyError, match=message):
            R2R.tune(tuning(toy, small, **options))


def test_a_router_belongs_to_its_two_models(
    small: str, router: Path, toy: TorchModel, pebble64: TorchModel, tmp_path: Path
) -> None:
    get_method(f"r2r(small='{small}',router='{router}')").check(toy)
    another = saved(make_toy(seed=2), tmp_path / "another")
    with pytest.raises(ThriftyError, match="trained for the small model"):
        get_method(f"r2r(small='{another}',router='{router}')").check(toy)
    with pytest.raises(ThriftyError, match="made for 'toy'"):
        get_method(f"r2r(small='{small}',router='{router}')").check(pebble64)


def test_without_a_router_it_says_where_to_get_one(small: str, toy: TorchModel) -> None:
    for options in (f"small='{small}'", f"small='{small}',threshold=0.4"):
        with pytest.raises(ThriftyError, match=r"thrifty tune 'r2r\(small=SMALL\)'.*strategy=entropy") as refusal:
            get_method(f"r2r({options})").check(toy)
        assert "\n" not in str(refusal.value)
    for options in (f"small='{small}',threshold=0", f"small='{small}',strategy=log-u"):
        get_method(f"r2r({options})").check(toy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("strategy=oracle", "unknown strategy"),
        ("threshold=high", "number"),
        ("strategy=random,threshold=0.5", "rate"),
        ("strategy=random,rate=1.5", "rate"),
        ("window=0", "window"),
    ],
)
def test_mistakes_get_one_line(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message) as mistake:
        get_method(f"r2r({options})")
    assert "\n" not in str(mistake.value)


def test_divergent_is_what_a_three_class_router_counts(small_toy: TorchModel) -> None:
    router = Router(small_toy.hidden_size, 8, 0, 4, classes=3).eval()
    router.head.weight.data.zero_()
    router.head.bias.data = torch.tensor([0.0, 0.0, 0.0])
    router.head.bias.data[DIVERGENT] = 50.0
    top = torch.zeros(2, 4)
    hidden = torch.zeros(2, small_toy.hidden_size)
    assert router.probabilities(hidden, hidden, top).tolist() == pytest.approx([1.0, 1.0])
