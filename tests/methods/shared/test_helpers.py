"""Helpers: loaded once, asked for a plain answer, and think blocks that are filled in their stead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import make_toy
from tests_helpers import TextOnly
from thrifty.decoding.loop import Plan, decode_rows
from thrifty.errors import ThriftyError
from thrifty.methods.shared.helpers import (
    ask,
    clean_thought,
    helper_model,
    helper_settings,
    reply_of,
    role_of,
    think_block,
)
from thrifty.models import embedded_folder
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.think import THINK_FORMATS
from thrifty.traces.trace import Problem

QUESTION = "What is 2 + 3?"
FOLDER = str(embedded_folder("pebble"))
MARKERS = ("<think>", "</think>", "<|end|>")


def test_a_helper_is_the_model_itself_or_loaded_once_in_its_precision(pebble: TorchModel, pebble64: TorchModel) -> None:
    assert helper_model("", pebble) is pebble
    assert helper_model("pebble", pebble) is pebble
    helper = helper_model(FOLDER, pebble64)
    assert helper is not pebble64
    assert helper is helper_model(FOLDER, pebble64)
    assert helper.dtype == pebble64.dtype
    assert helper_model(FOLDER, pebble).dtype == pebble.dtype
    assert (role_of(helper, pebble64), role_of(pebble64, pebble64)) == ("helper", "probe")


def test_a_helper_must_exist_and_run_where_the_model_runs(pebble: TorchModel) -> None:
    with pytest.raises(ThriftyError, match="no model 'nowhere'"):
        helper_model("nowhere", pebble)
    with pytest.raises(ThriftyError, match=r"is on a server, so its helper must be too: .* is not"):
        helper_model(FOLDER, TextOnly())


def test_thoughts_lose_their_markers_and_their_answers() -> None:
    assert clean_thought("<think>\na;b</think>\n\n<|end|>", MARKERS) == "a;b"
    assert clean_thought("a</thi</think>nk>b", MARKERS) == "ab"
    told = "1. Add 2 and 3.\n2. Check it. So the answer is 5.\n\n**Final Answer:** \\boxed{5}"
    assert clean_thought(told, MARKERS) == "1. Add 2 and 3.\n2. Check it."
    assert clean_thought(told, MARKERS, keep_answers=True) == told
    assert clean_thought("**Final Answer:** \\boxed{}", MARKERS) == ""


def test_a_thought_fills_the_block_that_the_prompt_has_opened(pebble: TorchModel) -> None:
    prompt = pebble.render([{"role": "user", "content": QUESTION}])
    assert prompt.endswith("<think>\n")
    assert think_block(pebble, prompt, QUESTION, " a;b\n") == "a;b\n</think>\n\n"
    assert think_block(pebble, prompt, QUESTION, "") == "</think>\n\n"


def test_a_thought_opens_the_block_where_the_prompt_has_not() -> None:
    model = make_toy()
    prompt = f"<|user|>{QUESTION}<|end|>\n<|assistant|>"
    assert think_block(model, prompt, QUESTION, "a;b") == "<think>\na;b\n</think>\n\n"
    assert think_block(model, prompt, QUESTION, "") == "<think>\n</think>\n\n"
    mentioned = "What does <think> mean?"
    assert think_block(model, f"<|user|>{mentioned}<|end|>", mentioned, "a").startswith("<think>")
    plain = TorchModel(model.network, model.tokenizer, "plain", THINK_FORMATS["none"])
    assert think_block(plain, prompt, QUESTION, "a;b") == ""


@pytest.mark.parametrize("open", [True, False])
def test_a_row_behind_a_filled_block_answers_at_once(open: bool, pebble: TorchModel) -> None:
    prompt = pebble.render([{"role": "user", "content": QUESTION}])
    prompt = prompt if open else prompt.removesuffix("<think>\n")
    plan = Plan(prompt, prefix=think_block(pebble, prompt, QUESTION, "Add them."))
    (row,) = decode_rows(pebble, [(Job(Problem.ask(QUESTION)), plan)], Settings(max_tokens=60))
    assert (row.phases.phase, row.phases.blocks, row.phases.closed) == ("answer", 1, 1)
    assert row.usage.thinking == 0
    assert row.usage.answer > 0


def test_a_side_stream_takes_nothing_that_is_meant_for_the_response() -> None:
    run = Settings(max_tokens=500, thinking_budget=9, answer_reserve=300, temperature=0.8, top_p=0.5, stop=("a",))
    assert helper_settings(run, 40) == Settings(max_tokens=40)
    assert helper_settings(run, 40, temperature=0.1).temperature == 0.1


def test_who_is_asked_answers_without_thinking(pebble: TorchModel) -> None:
    call = ask(pebble, [{"role": "user", "content": QUESTION}], Settings(max_tokens=60))
    plan = Plan(call.prompt, settings=call.settings, prefix=call.prefix)
    (row,) = decode_rows(pebble, [(Job(Problem.ask(QUESTION)), plan)], Settings())
    assert row.usage.thinking == 0
    assert reply_of(row) == row.text().removeprefix("</think>").removesuffix("<|end|>").strip()


def test_recordings_can_be_asked_too(pebble: TorchModel, tmp_path: Path) -> None:
    path = tmp_path / "helper.jsonl"
    path.write_text(json.dumps({"question": QUESTION, "response": "Add the two."}) + "\n")
    helper = helper_model(f"replay:{path}", pebble)
    call = ask(helper, [{"role": "user", "content": QUESTION}], Settings())
    (row,) = decode_rows(helper, [(Job(Problem.ask(QUESTION)), Plan(call.prompt, prefix=call.prefix))], Settings())
    assert reply_of(row) == "Add the two."
