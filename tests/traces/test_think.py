"""Think blocks: formats found in templates, phases however the markers are split, and splitting of responses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.errors import ThriftyError, UnknownName
from thrifty.traces.think import (
    THINK_FORMATS,
    Phases,
    PhaseTracker,
    ThinkFormat,
    detect_think_format,
    split_thinking,
    think_format,
)

THINK, HARMONY, MISTRAL, NONE = (THINK_FORMATS[name] for name in ("think", "harmony", "mistral", "none"))
LINE, PARAGRAPH, OPEN, CLOSE = PhaseTracker.LINE, PhaseTracker.PARAGRAPH, PhaseTracker.OPEN, PhaseTracker.CLOSE

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
R1_DISTILL = (
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{% if add_generation_prompt and not ns.is_tool %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
QWEN3 = (
    "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}{%- endif %}"
)
QWQ = (
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
    "{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}"
)
GPT_OSS = (
    "{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}"
    "{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"
)
MAGISTRAL = (
    "{%- set default_system_message = 'First draft your thinking process. Your thinking process must follow the "
    "template below:[THINK]Your thoughts[/THINK]Here, provide a self-contained response.' %}"
    "{{- '[INST]' + message['content'] + '[/INST]' }}"
)


@pytest.mark.parametrize(
    ("template", "vocabulary", "name"),
    [
        (R1_DISTILL, ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"], "think"),
        (QWEN3, ["<|im_start|>", "<|im_end|>", "<think>", "</think>"], "think"),
        (QWQ, ["<|im_start|>", "<|im_end|>"], "think"),
        (GPT_OSS, ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"], "harmony"),
        (MAGISTRAL, ["[INST]", "[/INST]", "[THINK]", "[/THINK]"], "mistral"),
        (CHATML, ["<|im_start|>", "<|im_end|>"], "none"),
        # a template may leave the markers to the model, or be absent
        (CHATML, ["<|im_start|>", "<|im_end|>", "<think>", "</think>"], "think"),
        ("", ["[THINK]", "[/THINK]"], "mistral"),
        ("", ["<|channel|>"], "harmony"),
        ("", [], "none"),
    ],
)
def test_the_format_is_read_off_the_template(template: str, vocabulary: list[str], name: str) -> None:
    assert detect_think_format(template, vocabulary) is THINK_FORMATS[name]


def test_known_formats() -> None:
    assert {name: f.thinks for name, f in THINK_FORMATS.items()} == {
        "think": True,
        "harmony": True,
        "mistral": True,
        "none": False,
    }
    assert all(think_format(name) is f for name, f in THINK_FORMATS.items())


@pytest.mark.parametrize("format", [f for f in THINK_FORMATS.values() if f.thinks], ids=lambda f: f.name)
def test_what_is_forced_opens_and_closes(format: ThinkFormat) -> None:
    pieces = [format.force_open.encode(), b"so", format.force_close.encode(), b"42"]
    states = [("answer", 0, 0), ("thinking", 1, 0), ("thinking", 1, 0), ("answer", 1, 1), ("answer", 1, 1)]
    assert follow(pieces, format=format) == states


def test_own_markers() -> None:
    assert think_format("a,b") == ThinkFormat("a,b", "a", "b", "a\n", "b\n\n")
    assert think_format("<thought>,</thought>").close == "</thought>"
    assert split_thinking("a1b2", think_format("a,b")) == ("1", "2")


@pytest.mark.parametrize("name", ["thinks", "", ",", "a,", ",b"])
def test_an_unknown_format_is_named_with_those_that_exist(name: str) -> None:
    with pytest.raises(
        UnknownName, match=r"unknown think format .* Known: harmony, mistral, none, think\. .*'<a>,</a>'"
    ):
        think_format(name)


@pytest.mark.parametrize("name", ["x,x", "think>,/think>", "</t>,t"])
def test_markers_of_which_one_contains_the_other_are_refused(name: str) -> None:
    with pytest.raises(ThriftyError, match="one marker contains the other"):
        think_format(name)


def feed(tracker: PhaseTracker, phases: Phases, tokens: Iterable[int]) -> list[tuple[int, ...]]:
    return [tracker.feed(phases, token) for token in tokens]


def follow(pieces: list[bytes], prompt: str = "", format: ThinkFormat = THINK) -> list[tuple[str, int, int]]:
    """Return phase, blocks and closed before each piece and after the last."""
    tracker = PhaseTracker(format, pieces.__getitem__)
    phases = tracker.start(prompt)
    seen = [(phases.phase, phases.blocks, phases.closed)]
    for token in range(len(pieces)):
        tracker.feed(phases, token)
        seen.append((phases.phase, phases.blocks, phases.closed))
    return seen


def end_of(text: str, prompt: str = "", format: ThinkFormat = THINK) -> tuple[str, int, int]:
    return follow([bytes([b]) for b in text.encode()], prompt, format)[-1]


def bounds_of(data: bytes, cuts: set[int]) -> list[int]:
    return sorted({0, len(data), *(c for c in cuts if c < len(data))})


@settings(deadline=None)
@given(st.sets(st.integers(1, 17)))
def test_markers_split_over_tokens_in_any_way(cuts: set[int]) -> None:
    text = b"x<think>a</think>b"
    # of the byte that follows so many: the marker's own last byte makes the change
    expected = ["answer"] * 8 + ["thinking"] * 9 + ["answer"] * 2
    bounds = bounds_of(text, cuts)
    seen = follow([text[a:b] for a, b in pairwise(bounds)])
    assert [phase for phase, _, _ in seen] == [expected[b] for b in bounds]
    assert seen[-1] == ("answer", 1, 1)


markers_and_text = st.lists(
    st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", "<", "\n", "\n\n", "so", "é", "😀"]), max_size=16
).map("".join)


@settings(deadline=None)
@given(markers_and_text, st.sets(st.integers(1, 80)), st.sampled_from(["", "<think>\n", "<think>\n\n</think>\n\n"]))
def test_no_split_changes_phases_or_reports(text: str, cuts: set[int], prompt: str) -> None:
    data = text.encode()
    bounds = bounds_of(data, cuts)
    by_byte = follow([bytes([b]) for b in data], prompt)
    assert follow([data[a:b] for a, b in pairwise(bounds)], prompt) == [by_byte[b] for b in bounds]
    tokens = [data[a:b] for a, b in pairwise(bounds)]
    tracker, single = PhaseTracker(THINK, tokens.__getitem__), PhaseTracker(THINK, lambda b: bytes([b]))
    reports = feed(tracker, tracker.start(prompt), range(len(tokens)))
    assert sum(reports, ()) == sum(feed(single, single.start(prompt), data), ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("answer", 0, 0)),
        ("plain answer", ("answer", 0, 0)),
        ("<think>a", ("thinking", 1, 0)),
        ("<think>a</think>", ("answer", 1, 1)),
        ("<think>a</think>b<think>c", ("thinking", 2, 1)),
        ("<think>a</think>b<think>c</think>d", ("answer", 2, 2)),
        # a closer that is repeated ends nothing, an opener that is repeated begins nothing
        ("<think>a</think>b</think>c", ("answer", 1, 1)),
        ("<think>a<think>b</think>c", ("answer", 1, 1)),
        # R1 and QwQ write the closer only, even where a prompt without template did not open the block
        ("a</think>b", ("answer", 1, 1)),
        ("a</think>b</think>c", ("answer", 1, 1)),
        ("a</think>b<think>c</think>d", ("answer", 2, 2)),
        ("<think></think>", ("answer", 1, 1)),
        ("</think><think>", ("thinking", 2, 1)),
    ],
)
def test_blocks(text: str, expected: tuple[str, int, int]) -> None:
    assert end_of(text) == expected


@pytest.mark.parametrize(
    ("prompt", "start", "after_a_closer"),
    [
        ("<｜User｜>q<｜Assistant｜>", ("answer", 0, 0), ("answer", 1, 1)),
        ("<｜User｜>q<｜Assistant｜><think>\n", ("thinking", 1, 0), ("answer", 1, 1)),
        # thinking turned off by an empty block: the closer that the model adds is a repeated one
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ("answer", 1, 1), ("answer", 1, 1)),
        # earlier turns with blocks of their own
        ("q<think>a</think>b<|im_end|>q2<|im_start|>assistant\n", ("answer", 0, 0), ("answer", 1, 1)),
        ("q<think>a</think>b<|im_end|>q2<|im_start|>assistant\n<think>\n", ("thinking", 1, 0), ("answer", 1, 1)),
        ("write between <think> and </think>.<|im_end|><|im_start|>assistant\n", ("answer", 0, 0), ("answer", 1, 1)),
    ],
)
def test_prompts(prompt: str, start: tuple[str, int, int], after_a_closer: tuple[str, int, int]) -> None:
    assert end_of("", prompt) == start
    assert end_of("x</think>", prompt) == after_a_closer


def test_a_block_opened_in_the_prompt_and_once_more_by_the_model_is_one_block() -> None:
    assert end_of("<think>\na", "<think>\n") == ("thinking", 1, 0)
    assert end_of("<think>\na</think>b", "<think>\n") == ("answer", 1, 1)


def test_closing_and_reopening_within_one_token() -> None:
    pieces = [b"<think>", b"</think><think>", b"</think>\n\n"]
    assert follow(pieces) == [("answer", 0, 0), ("thinking", 1, 0), ("thinking", 2, 1), ("answer", 2, 2)]


def test_harmony_channels() -> None:
    start = "<|start|>assistant"
    analysis, final = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
    assert end_of(f"{analysis}a", start, HARMONY) == ("thinking", 1, 0)
    assert end_of(f"{analysis}a<|end|>{start}{final}b", start, HARMONY) == ("answer", 1, 1)
    # a second analysis message goes on with the same thinking
    assert end_of(f"{analysis}a<|end|>{start}{analysis}b", start, HARMONY) == ("thinking", 1, 0)
    earlier = f"{start}{final}b<|end|><|start|>user<|message|>q<|end|>{start}"
    assert end_of("", earlier, HARMONY) == ("answer", 0, 0)


def test_mistral_markers() -> None:
    assert end_of("[THINK]a", "[INST]q[/INST]", MISTRAL) == ("thinking", 1, 0)
    assert end_of("[THINK]a[/THINK]b", "[INST]q[/INST]", MISTRAL) == ("answer", 1, 1)


def test_a_model_without_blocks_never_thinks() -> None:
    assert end_of("<think>a", "<think>", NONE) == ("answer", 0, 0)


@pytest.mark.parametrize("format", [THINK, NONE], ids=["think", "none"])
def test_lines_and_paragraphs_are_reported(format: ThinkFormat) -> None:
    tokens = [b"a\n", b"b\n", b"\n", b"\n", b"c\n\nd", b"e", b"\n\n"]
    tracker = PhaseTracker(format, tokens.__getitem__)
    reports = feed(tracker, tracker.start("q\n"), range(len(tokens)))
    assert [sorted(r) for r in reports] == [
        [LINE],
        [LINE],
        [LINE, PARAGRAPH],
        [LINE, PARAGRAPH],  # each further blank line ends a paragraph again
        [LINE, LINE, PARAGRAPH],
        [],
        [LINE, LINE, PARAGRAPH],
    ]


def test_reports_come_in_the_order_of_the_text() -> None:
    tokens = [b"<think>\na</think>"]
    tracker = PhaseTracker(THINK, tokens.__getitem__)
    assert tracker.feed(tracker.start(""), 0) == (OPEN, LINE, CLOSE)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("", False, ("", "")),
        ("", True, ("", None)),
        ("b", False, ("", "b")),
        ("a", True, ("a", None)),
        ("<think>\na</think>\n\nb", False, ("\na", "\n\nb")),
        ("<think>a", False, ("a", None)),
        ("<think>", False, ("", None)),
        ("<think>a</think>", False, ("a", "")),
        ("x<think>a</think>b", False, ("a", "xb")),
        ("a</think>b", False, ("a", "b")),
        ("a</think>b", True, ("a", "b")),
        ("<think>a</think>b", True, ("a", "b")),
        ("<think>a<think>b</think>c", False, ("ab", "c")),
        ("a</think>b</think>c", False, ("a", "bc")),
        ("<think>a</think>b<think>c</think>d", False, ("ac", "bd")),
        ("<think>a</think>b<think>c", False, ("ac", None)),
    ],
)
def test_responses_are_split(text: str, opened: bool, expected: tuple[str, str | None]) -> None:
    assert split_thinking(text, THINK, opened) == expected


def test_a_format_without_blocks_splits_nothing() -> None:
    assert split_thinking("<think>a</think>b", NONE) == ("", "<think>a</think>b")


def split_by_tracker(text: str, opened: bool) -> tuple[str, str | None]:
    """Collect what stands in each phase of the tracker, markers left out."""
    tracker = PhaseTracker(THINK, lambda byte: bytes([byte]))
    phases = tracker.start("<think>\n" if opened else "")
    collected = {"thinking": "", "answer": ""}
    for part in re.split("(</?think>)", text):
        if part not in ("<think>", "</think>"):
            collected[phases.phase] += part
        unopened = phases.blocks == 0
        feed(tracker, phases, part.encode())
        if unopened and phases.closed:  # a closer without opener: what stood before it was the thinking
            collected = {"thinking": collected["answer"], "answer": ""}
    return collected["thinking"], None if phases.phase == "thinking" else collected["answer"]


@settings(deadline=None)
@given(markers_and_text, st.booleans())
def test_splitting_agrees_with_the_tracker(text: str, opened: bool) -> None:
    assert split_thinking(text, THINK, opened) == split_by_tracker(text, opened)


@pytest.mark.parametrize("question", ["hi", "think", "<think>", "a</think>", "i", "<", "what is <think>?"])
def test_a_question_found_within_a_marker_hides_no_open_block(question: str) -> None:
    tracker = PhaseTracker(THINK, lambda _: b"")
    for behind, phase in (("<think>\n", "thinking"), ("<think>\n\n</think>\n\n", "answer"), ("", "answer")):
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{behind}"
        assert tracker.start(prompt, question).phase == phase
        assert tracker.start(prompt, f" {question}\n").phase == phase


def test_a_block_that_was_ended_for_good_stays_ended() -> None:
    spelled = [b"<think>", b"</think>", b"a"]
    tracker = PhaseTracker(THINK, lambda token: spelled[token])
    phases = Phases("thinking", blocks=1)
    tracker.feed(phases, 1)
    phases.final = True
    assert [tracker.feed(phases, 0), phases.phase, phases.blocks] == [(OPEN,), "answer", 1]
