"""Formats: asked for by a system prompt, opened by a tag."""

from __future__ import annotations

import pytest

from thrifty.models.formats import FORMAT_PROMPTS, FORMAT_TAGS, format_of, in_format, knows_formats
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Problem

QUESTION = Problem.ask("2 + 2?").messages


def test_a_format_is_a_system_prompt_behind_one_that_is_there() -> None:
    assert in_format(QUESTION, "short") == ({"role": "system", "content": FORMAT_PROMPTS["short"]}, *QUESTION)
    polite = {"role": "system", "content": "Be polite."}
    system, question = in_format([polite, *QUESTION], "code")
    assert system == {"role": "system", "content": "Be polite.\n\nWrite a program."}
    assert question == QUESTION[0]
    assert polite["content"] == "Be polite."


@pytest.mark.parametrize("format", FORMAT_TAGS)
def test_the_first_tag_tells_the_format(format: str) -> None:
    assert format_of(f"\n{FORMAT_TAGS[format]}\n<ANSWER>4</ANSWER>") == format
    assert format_of(f"So {FORMAT_TAGS[format]}") is None


def test_the_embedded_models_know_the_formats_and_others_do_not(pebble: TorchModel) -> None:
    assert knows_formats(pebble.template)
    assert not knows_formats("{{ messages }}")
    assert not knows_formats("")
