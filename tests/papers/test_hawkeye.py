"""Hawkeye: the card's rewards, what the small model is given, who pays for what, equality with the plain model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from thrifty.catalogue import Need
from thrifty.decoding.loop import Plan, decode
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.collaborate.hawkeye import (
    CHAIN_PROMPT,
    RESPONSE_PROMPT,
    calibrated_penalty,
    hawkeye_reward,
    leaks,
)
from thrifty.models import embedded_folder, load_model
from thrifty.models.base import Job, Settings, TextModel, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem, Trace

COPY = f"small='{embedded_folder('pebble')}'"
"""A second model: another copy of the embedded one."""
QUESTION = "What is 3 * 4 + 5?"


def solve(model: Any, spec: str, count: int = 3, problems: Iterable[Problem] = (), **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 120, **values})
    chosen = problems or load_task("mix").problems(limit=count, seed=9)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs_for(chosen, 1), settings)}


def segments(traces: dict[str, Trace]) -> dict[str, Any]:
    return {k: [(s.kind, s.phase, s.ids, s.text) for s in t.segments] for k, t in traces.items()}


def recorded(folder: Path, name: str, responses: dict[str, str], streams: int = 2) -> str:
    """Write a model that answers prompts as recorded, the same in so many random streams; return its name."""
    path = folder / f"{name}.jsonl"
    lines = [json.dumps({"question": q, "response": r}) + "\n" for q, r in responses.items() for _ in range(streams)]
    path.write_text("".join(lines))
    return f"replay:{path}"


# -- rewards ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "correct", "reward"),
    [(200, True, 0.975), (200, False, -0.025), (120, True, 1.0), (150, True, 1.0), (500, True, -0.225)],
)
def test_rewards_of_the_card(length: int, correct: bool, reward: float) -> None:
    found = hawkeye_reward(torch.tensor([length]), torch.tensor(500), torch.tensor([correct]), 1e-5)
    assert found.item() == pytest.approx(reward, abs=1e-12)


def test_a_group_of_rewards() -> None:
    rewards = hawkeye_reward(
        torch.tensor([120, 200, 200, 120]), torch.full((4,), 500), torch.tensor([1, 1, 0, 0]), penalty=1e-5
    )
    assert rewards.tolist() == pytest.approx([1, 0.975, -0.025, 0])
    assert rewards.mean().item() == pytest.approx(0.4875)
    assert (rewards > rewards.mean()).tolist() == [True, True, False, False]


def test_a_calibrated_penalty_makes_an_uncompressed_chain_worth_nothing() -> None:
    penalty = calibrated_penalty(torch.tensor([500]))
    assert penalty.item() == pytest.approx(8.16e-6, rel=1e-3)
    assert hawkeye_reward(torch.tensor([500]), torch.tensor(500), torch.tensor([1]), penalty).item() == pytest.approx(0)
    assert calibrated_penalty(torch.tensor([400, 600])) == penalty


def test_the_normalised_variant_does_not_penalise_long_problems_more() -> None:
    lengths, original = torch.tensor([100, 1000]), torch.tensor([100, 1000])
    rewards = hawkeye_reward(lengths, original, torch.tensor([1, 1]), 1.0, normalised=True)
    assert rewards.tolist() == pytest.approx([0.51, 0.51])


@pytest.mark.parametrize(
    ("chain", "leak"),
    [
        ("The answer is 17.", True),
        ("\\boxed{17}", True),
        ("3*4=12\n12+5=17\nSo the answer is 17.", False),
        ("3*4=12\n12+5=17", False),
        ("", False),
        (" \n", False),
    ],
)
def test_a_chain_that_is_nothing_but_the_answer_is_a_leak(chain: str, leak: bool) -> None:
    assert leaks(chain) is leak


# -- what is handed over ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "asked", "thinking", "given"),
    [
        ("", f"{QUESTION}\n\n{CHAIN_PROMPT}", "3*4=12\n12+5=17", "3*4=12\n12+5=17"),
        ("ask=none", QUESTION, "3*4=12\n12+5=17", "3*4=12\n12+5=17"),
        ("ask=short", f"Think briefly.\n\n{QUESTION}", "12, 17", "12, 17"),
        ("ask=none,strip=true", QUESTION, "3*4=12.\n12+5=17.\nThe answer is 17.", "3*4=12.\n12+5=17."),
        ("ask=none", QUESTION, "3*4=12.\nThe answer is 17.", "3*4=12.\nThe answer is 17."),
        ("ask=none,strip=true", QUESTION, "The answer is 17.", ""),
        ("ask=none", QUESTION, "", ""),
    ],
)
def test_the_small_model_reads_the_question_and_the_chain(
    options: str, asked: str, thinking: str, given: str, tmp_path: Path
) -> None:
    large = load_model(recorded(tmp_path, "large", {asked: f"<think>\n{thinking}\n</think>\n\nIt is 99, by the way."}))
    reasoning = f"\n\nReasoning:\n{given}" if given else ""
    prompt = f"{RESPONSE_PROMPT}\n\n{QUESTION}{reasoning}"
    small = recorded(tmp_path, "small", {prompt: "Added up, \\boxed{17}"})
    spec = f"hawkeye({options}{',' if options else ''}small='{small}')"
    (trace,) = solve(large, spec, problems=[Problem.ask(QUESTION)], max_tokens=400).values()
    assert trace.answer_text == "Added up, \\boxed{17}"
    assert trace.answer == "17"
    assert "99" not in trace.text, "the large model is stopped behind its thinking"
    assert thinking in trace.thinking_text
    assert trace.closed_by == "model"
    told = trace.events["hawkeye"]
    assert told["leak"] is (thinking == "The answer is 17.")
    assert told["large"] == trace.usage.thinking == sum(len(s.ids) for s in trace.segments)
    assert trace.usage.answer == 0
    assert trace.usage.helper == told["small"] + told["read"]


def test_markers_in_a_chain_do_not_reach_the_small_models_prompt(tmp_path: Path, pebble: TorchModel) -> None:
    chain = "a <|end|> b"
    large = load_model(recorded(tmp_path, "large", {QUESTION: f"<think>{chain}</think>"}))
    problem = [Problem.ask(QUESTION)]
    (trace,) = solve(large, f"hawkeye(ask=none,{COPY})", problems=problem, max_tokens=400).values()
    given = f"{QUESTION}\n\nReasoning:\na  b"
    prompt = pebble.render([{"role": "system", "content": RESPONSE_PROMPT}, {"role": "user", "content": given}])
    read = len(pebble.encode_prompt(prompt)) + len(pebble.encode("</think>\n\n"))
    assert trace.events["hawkeye"]["read"] == read


# -- the real engine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_without_a_small_model_and_a_prompt_it_is_vanilla(temperature: float, toy: TorchModel) -> None:
    plain, alone = (
        solve(toy, s, max_tokens=60, temperature=temperature) for s in ("vanilla", "hawkeye(small='',ask=none)")
    )
    assert segments(plain) == segments(alone)
    assert {k: t.usage.total for k, t in plain.items()} == {k: t.usage.total for k, t in alone.items()}
    asked = solve(toy, "hawkeye(small='')", max_tokens=60, temperature=temperature)
    assert segments(asked) != segments(plain)


@pytest.mark.parametrize("handover", ["prompt", "think"])
def test_two_models_share_a_response(handover: str, pebble64: TorchModel) -> None:
    plain = solve(pebble64, "vanilla", max_tokens=200)
    for key, trace in solve(pebble64, f"hawkeye(ask=none,handover={handover},{COPY})", max_tokens=200).items():
        told, usage = trace.events["hawkeye"], trace.usage
        assert trace.answer_text.strip()
        assert trace.thinking_text == plain[key].thinking_text, "the chain is what the model would have thought"
        assert (usage.thinking, usage.prompt) == (plain[key].usage.thinking, plain[key].usage.prompt)
        assert usage.answer == 0 < told["small"]
        assert usage.helper == told["small"] + told["read"]
        assert usage.total == usage.prompt + usage.thinking + usage.injected + usage.helper
        assert told["read"] > usage.prompt, "the small model reads the question and the chain"
        assert Trace.from_json(trace.to_json()) == trace


def test_the_main_model_as_its_own_partner_counts_as_a_probe(pebble: TorchModel) -> None:
    own, other = (solve(pebble, f"hawkeye({small})", 2) for small in ("small=pebble", COPY))
    assert segments(own) == segments(other)
    assert {k: t.usage.probe for k, t in own.items()} == {k: t.usage.helper for k, t in other.items()}
    assert all(t.usage.helper == 0 < t.usage.probe for t in own.values())


def test_the_chain_ends_at_the_cap(pebble: TorchModel) -> None:
    for trace in solve(pebble, f"hawkeye(cap=12,{COPY})").values():
        assert trace.closed_by == "budget"
        assert trace.events["hawkeye"]["large"] == 12
        assert trace.events["budget"] == 12
        assert trace.answer_text.strip()
    for trace in solve(pebble, f"hawkeye(cap=12,{COPY})", thinking_budget=5).values():
        assert trace.events["hawkeye"]["large"] == 5


def test_a_chain_of_the_whole_limit_leaves_the_reserve_for_the_answer(toy: TorchModel) -> None:
    for trace in solve(toy, f"hawkeye({COPY})", max_tokens=40).values():
        assert trace.events["hawkeye"]["large"] + trace.events["hawkeye"]["small"] <= 40 + 1
        assert trace.events["hawkeye"]["small"] > 0


def test_results_do_not_depend_on_the_batch(pebble64: TorchModel) -> None:
    one, other = (
        solve(pebble64, f"hawkeye({COPY})", batch_size=size, temperature=0.8, max_tokens=80) for size in (1, 3)
    )
    assert segments(one) == segments(other)
    assert {k: t.events for k, t in one.items()} == {k: t.events for k, t in other.items()}


def test_methods_that_steer_one_stream_steer_the_chain(pebble: TorchModel) -> None:
    for trace in solve(pebble, f"hawkeye({COPY})+cap(budget=8)", 2).values():
        assert trace.closed_by == "cap"
        assert trace.usage.thinking == 8
        assert trace.answer_text.strip()


class Texts(TextModel):
    """A model of which only the texts are to be had, as of one on a server."""

    gives: ClassVar[Need] = Need.TEXT
    name = "texts"

    def __init__(self, model: TorchModel) -> None:
        self.model = model
        self.asked: list[tuple[str, Settings]] = []

    def respond(self, jobs: Iterable[Job], settings: Settings, method: str = "vanilla") -> Iterator[Trace]:
        jobs = list(jobs)
        self.asked += [(job.problem.question, settings) for job in jobs]
        return decode(self.model, jobs, settings, lambda job: Plan(self.model.render(job.problem.messages)), method)


def test_text_is_enough_and_the_small_model_may_be_a_local_one(toy: TorchModel) -> None:
    large = Texts(toy)
    for trace in solve(large, f"hawkeye(cap=30,{COPY})", 2).values():
        told, usage = trace.events["hawkeye"], trace.usage
        assert trace.answer_text.strip()
        assert told["large"] + usage.injected <= 30
        assert usage.helper == told["small"] + told["read"]
        assert usage.prompt > 0
    assert all(CHAIN_PROMPT in question for question, _ in large.asked)
    assert all(settings.max_tokens == 30 and "</think>" in settings.stop for _, settings in large.asked)
    plain, alone = (solve(Texts(toy), spec, 2) for spec in ("vanilla", "hawkeye(small='',ask=none)"))
    assert segments(plain) == segments(alone)
    own = solve(Texts(toy), "hawkeye(small=texts)", 1)
    assert all(t.usage.helper == 0 < t.usage.probe for t in own.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ask=briefly", "unknown ask"),
        ("handover=mail", "unknown handover"),
        ("cap=0", "at least 1"),
    ],
)
def test_mistakes_get_one_line(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message) as mistake:
        get_method(f"hawkeye({options})")
    assert "\n" not in str(mistake.value)


def test_partners_are_looked_for_before_any_work(toy: TorchModel) -> None:
    for main in (toy, Texts(toy)):
        with pytest.raises(ThriftyError, match="no model 'nowhere'"):
            get_method("hawkeye(small=nowhere)").check(main)
    with pytest.raises(ThriftyError, match="leave out handover=think"):
        get_method(f"hawkeye(handover=think,{COPY})").check(Texts(toy))
