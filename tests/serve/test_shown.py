"""What is shown of a text that comes in pieces does not depend on the pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from thrifty.models.torch import TorchModel
from thrifty.serve.shown import Shown, StopFilter
from thrifty.traces.think import THINK_FORMATS, MarkerFilter


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<thi", "a", " ", "\n", "<", "b</"]), max_size=12).map("".join),
    st.lists(st.integers(0, 100), max_size=12),
)
def test_markers_go_wherever_the_text_is_cut(text: str, places: list[int]) -> None:
    def shown(pieces: list[str]) -> str:
        markers = MarkerFilter(THINK_FORMATS["think"])
        told = [t for piece in pieces for _, t in markers.feed("answer", piece)]
        told += [t for _, t in markers.feed("answer", "", last=True)]
        assert not markers.holds
        assert all(told)
        return "".join(told)

    whole = shown([text])
    assert shown(cut(text, places)) == whole
    assert shown(list(text)) == whole
    assert "".join(text.replace("<think>", "").replace("</think>", "").split()) == "".join(whole.split())


def test_the_closer_of_another_family_goes_as_a_whole() -> None:
    markers = MarkerFilter(THINK_FORMATS["harmony"])
    text = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|end|>c"
    told = [t for character in text for _, t in markers.feed("answer", character)]
    assert "".join(told) == "ab<|end|>c"


def test_phases_stay_with_their_text() -> None:
    markers = MarkerFilter(THINK_FORMATS["think"])
    told = [*markers.feed("thinking", "a <"), *markers.feed("answer", "b"), *markers.feed("answer", "", last=True)]
    assert told == [("thinking", "a "), ("thinking", "<"), ("answer", "b")]


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 100), max_size=12),
)
def test_stop_strings_hold_over_the_borders_of_pieces(text: str, stop: list[str], places: list[int]) -> None:
    found = [(place + len(string), place) for string in stop if (place := text.find(string)) >= 0]
    expected = text[: min(found)[1]] if found else text
    filtered = StopFilter(stop)
    told = "".join(filtered.feed(piece) for piece in cut(text, places)) + filtered.feed("", last=True)
    assert told == expected
    assert filtered.stopped == bool(found)


@given(st.text("aé€𝄞\n", max_size=12))
def test_characters_are_shown_whole(toy: TorchModel, text: str) -> None:
    shown = Shown(toy)
    tokens = [token for byte in text.encode() for token in _byte_tokens(toy, byte)]
    pieces = [piece for token in tokens for piece in shown.feed("answer", [token])] + shown.end()
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert sum(piece.tokens for piece in pieces) == len(tokens)


def _byte_tokens(model: TorchModel, byte: int) -> list[int]:
    if not hasattr(_byte_tokens, "known"):
        known = {model.texts.bytes_of(t): t for t in range(len(model.texts)) if len(model.texts.bytes_of(t)) == 1}
        _byte_tokens.known = known  # type: ignore[attr-defined]  # found once for all examples
    return [_byte_tokens.known[bytes([byte])]]  # type: ignore[attr-defined]  # as above


def test_half_a_character_at_the_end_is_marked(toy: TorchModel) -> None:
    shown = Shown(toy)
    pieces = shown.feed("answer", _byte_tokens(toy, 0xE2)) + shown.end()
    assert [piece.text for piece in pieces] == ["\ufffd"]
