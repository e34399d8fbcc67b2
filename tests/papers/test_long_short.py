"""Long⊗Short: the card's rewards, scores and protocol, accounts, equality with the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_hawkeye import Texts, recorded, segments, solve

from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.collaborate.long_short import (
    TEAM_PROMPT,
    Transcript,
    format_reward,
    important,
    joint_scores,
    length_rewards,
    monte_carlo_scores,
)
from thrifty.models import embedded_folder, load_model
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Problem, Trace

COPY = f"short='{embedded_folder('pebble')}'"
QUESTION = "What is the sum of the digits of 12?"


# -- rewards and scores -----------------------------------------------------------------------------------------


def test_length_rewards_of_the_card() -> None:
    assert length_rewards(torch.tensor([100, 200, 300]), torch.tensor([1, 1, 0])).tolist() == [0.5, 0.0, -0.5]
    assert length_rewards(torch.tensor([100, 200, 300]), torch.tensor([0, 1, 1])).tolist() == [0.0, 0.0, -0.5]
    assert length_rewards(torch.tensor([7, 7]), torch.tensor([1, 0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "role", "reward"),
    [
        ("<think>a</think>", "long", 1),
        ("<answer></answer>", "short", 0),
        ("<answer>x</rethink>", "short", 1),
        ("<answer>x\ny</answer>", "short", 1),
        ("<answer>x<y</answer>", "short", 0),
        ("<think>a", "long", 0),
        ("<think>a<b</think>", "long", 0),
        (" <think>a</think>", "long", 0),
        ("<answer>x</answer>", "long", 0),
        ("<think>a</think>", "short", 0),
    ],
)
def test_format_rewards_of_the_card(text: str, role: Any, reward: int) -> None:
    assert format_reward(text, role) == reward


def test_joint_scores_of_the_card() -> None:
    correct = torch.zeros(4, 10, dtype=torch.bool)
    for i, right in enumerate((2, 7, 7, 6)):
        correct[i, :right] = True
    accuracies = monte_carlo_scores(correct)
    assert accuracies.tolist() == pytest.approx([0.2, 0.7, 0.7, 0.6])
    scores = joint_scores(accuracies, torch.tensor([0, 0.3, 0.6, 1]))
    assert scores.tolist() == pytest.approx([0.595, -0.01, -0.2])
    assert important(scores).tolist() == [True, False, False]


def test_one_thought_is_important_even_where_the_question_alone_did_better() -> None:
    scores = joint_scores(torch.tensor([0.9, 0.5, 0.5]), torch.tensor([0, 0.5, 1]), decay=0.0)
    assert scores.tolist() == [0.0, 0.0]
    assert important(scores).tolist() == [True, False]


# -- the protocol -----------------------------------------------------------------------------------------------


def prompts(turns: list[str]) -> tuple[str, str]:
    """Return what the long and the short model are asked behind some turns."""
    asked = "\n\n".join([QUESTION, *turns])
    long, short = (f"{TEAM_PROMPT.format(which=which)}\n\n{asked}" for which in ("first", "second"))
    return long, short


def scripted(folder: Path, turns: list[str], beyond: str = "") -> tuple[TorchModel, str]:
    """Return two models that write some turns, and something beyond them if nobody stops them."""
    folder.mkdir(exist_ok=True)
    longs = {prompts(turns[:i])[0]: turns[i] + beyond for i in range(0, len(turns), 2)}
    shorts = {prompts(turns[: i + 1])[1]: turns[i + 1] + beyond for i in range(0, len(turns), 2)}
    long = load_model(recorded(folder, "long", longs, 12))
    assert isinstance(long, TorchModel)
    return long, f"short='{recorded(folder, 'short', shorts, 12)}'"


TURNS = [
    "<think>1 and 2</think>",
    "<answer>which sum?</rethink>",
    "<think>1+2=3</think>",
    "<answer>\\boxed{3}</answer>",
]


@pytest.mark.parametrize("beyond", ["", " And so on."])
def test_the_scripted_dialogue_of_the_card_stops_after_two_rounds(beyond: str, tmp_path: Path) -> None:
    long, option = scripted(tmp_path, TURNS, beyond)
    short = load_model(option[7:-1])
    (trace,) = solve(long, f"long-short({option})", problems=[Problem.ask(QUESTION)], max_tokens=400).values()
    assert trace.thinking_text == "".join(TURNS[:3])
    assert trace.answer_text == "\\boxed{3}"
    assert trace.answer == "3"
    assert (trace.closed_by, trace.stop_reason) == ("model", "stop")
    told, usage = trace.events["long-short"], trace.usage
    assert (told["rounds"], told["done"]) == (2, True)
    assert usage.thinking == told["long"] == sum(len(s.ids) for s in trace.segments)
    assert told["short"] == sum(len(short.encode(turn)) for turn in TURNS[1::2]), "it stops at its tags"
    # what was said before is read again in every turn, by either model
    assert usage.prompt == sum(len(long.encode_prompt(prompts(TURNS[:i])[0])) for i in (0, 2))
    read = sum(len(short.encode_prompt(prompts(TURNS[:i])[1])) for i in (1, 3))
    assert usage.helper == told["short"] + read


def test_a_short_model_that_is_never_content_is_stopped(tmp_path: Path) -> None:
    turns = [TURNS[0], "<answer>No, 4.</rethink>"] * 3
    long, short = scripted(tmp_path, turns)
    spec = f"long-short(max_turns=2,{short})"
    (trace,) = solve(long, spec, problems=[Problem.ask(QUESTION)], max_tokens=400).values()
    assert (trace.events["long-short"]["rounds"], trace.events["long-short"]["done"]) == (2, False)
    assert trace.answer_text == "No, 4."
    (short_of_tokens,) = solve(long, f"long-short({short})", problems=[Problem.ask(QUESTION)], max_tokens=36).values()
    assert short_of_tokens.events["long-short"]["rounds"] < 3, "what is left must hold another round"


def test_missing_tags_are_put_in() -> None:
    transcript = Transcript()
    transcript.add_long("a", 3)
    assert not transcript.done
    for reply, turn, done in (
        ("5", "<answer>5</answer>", True),
        ("<answer>5", "<answer>5</answer>", True),
        ("So: <answer>5</answer> bye", "<answer>5</answer>", True),
        ("5</rethink></answer>", "<answer>5</rethink>", False),
        ("<answer>x<y\n</answer>", "<answer>x<y\n</answer>", True),
    ):
        transcript.add_short(reply, 2)
        assert (transcript.turns[-1], transcript.done) == (turn, done)
    assert (transcript.tokens, transcript.answer) == ({"long": 3, "short": 10}, "x<y")


# -- the real engine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_without_a_short_model_it_is_vanilla(temperature: float, toy: TorchModel) -> None:
    plain, alone = (solve(toy, s, max_tokens=60, temperature=temperature) for s in ("vanilla", "long-short(short='')"))
    assert segments(plain) == segments(alone)
    assert {k: t.usage.total for k, t in plain.items()} == {k: t.usage.total for k, t in alone.items()}


def test_dialogues_of_the_embedded_model(pebble: TorchModel) -> None:
    for trace in solve(pebble, f"long-short(turn_tokens=40,max_turns=2,{COPY})", max_tokens=160).values():
        told, usage = trace.events["long-short"], trace.usage
        assert 1 <= told["rounds"] <= 2
        assert trace.answer_text.strip()
        assert 0 < told["long"] == usage.thinking <= 40 * told["rounds"]
        assert 0 < told["short"] < usage.helper
        assert told["long"] + told["short"] + usage.injected <= 160
        assert usage.answer == 0
        assert usage.total == usage.prompt + usage.thinking + usage.injected + usage.helper
        assert usage.forward_passes >= usage.thinking
        for kind in ("thinking", "injected"):
            assert sum(len(s.ids) for s in trace.segments if s.kind == kind) == getattr(usage, kind)
        assert Trace.from_json(trace.to_json()) == trace


def test_the_budget_of_the_run_is_for_all_turns(pebble: TorchModel, tmp_path: Path) -> None:
    cut = [*TURNS[:2], "<think>1+</think>", TURNS[3]]
    _, short = scripted(tmp_path, cut)
    long, _ = scripted(tmp_path / "long", TURNS)
    budget = len(long.encode(TURNS[0])) + len(long.encode("<think>1+"))
    method = f"long-short({short})"
    (trace,) = solve(long, method, problems=[Problem.ask(QUESTION)], max_tokens=400, thinking_budget=budget).values()
    assert trace.events["long-short"]["long"] == budget
    assert trace.events["long-short"]["rounds"] == 2
    assert trace.closed_by == "budget"
    for found in solve(pebble, f"long-short({COPY})", 2, thinking_budget=15).values():
        assert found.usage.thinking == 15
        assert found.closed_by == "budget"


def test_temperatures(toy: TorchModel) -> None:
    greedy, own, runs = (
        solve(toy, f"long-short({COPY}{more})", 2, max_tokens=60, temperature=run)
        for more, run in ((",temperature=0.0", 0.9), ("", 0.9), (",temperature=-1.0", 0.0))
    )
    assert segments(greedy) == segments(runs)
    assert segments(greedy) != segments(own)


def test_results_do_not_depend_on_the_batch(pebble64: TorchModel) -> None:
    one, other = (
        solve(pebble64, f"long-short(turn_tokens=30,max_turns=2,{COPY})", batch_size=size, max_tokens=90)
        for size in (1, 3)
    )
    assert segments(one) == segments(other)
    assert {k: (t.events, t.usage.total) for k, t in one.items()} == {
        k: (t.events, t.usage.total) for k, t in other.items()
    }


def test_text_is_enough_and_the_short_model_may_be_a_local_one(toy: TorchModel) -> None:
    long = Texts(toy)
    for trace in solve(long, f"long-short(turn_tokens=30,max_turns=2,{COPY})", 2).values():
        told, usage = trace.events["long-short"], trace.usage
        assert trace.answer_text.strip()
        assert told["long"] + usage.injected <= 30 * told["rounds"]
        assert usage.helper > told["short"] > 0
    assert all(settings.temperature == 0.3 and "</think>" in settings.stop for _, settings in long.asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [("max_turns=0", "at least 1"), ("turn_tokens=0", "at least 1"), ("temperature=-2.0", "-1 for that of the run")],
)
def test_mistakes_get_one_line(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message) as mistake:
        get_method(f"long-short({options})")
    assert "\n" not in str(mistake.value)


def test_partners_are_looked_for_before_any_work(toy: TorchModel) -> None:
    for main in (toy, Texts(toy)):
        with pytest.raises(ThriftyError, match="no model 'nowhere'"):
            get_method("long-short(short=nowhere)").check(main)
