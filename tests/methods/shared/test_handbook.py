"""Handbooks: the card's retrieval and parser cases, any text around any JSON, duplicates, leaks, a file and back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty.errors import ThriftyError
from thrifty.methods.shared.handbook import (
    Behavior,
    Handbook,
    NGrams,
    Retriever,
    behavior_name,
    cited,
    first_object,
    leaks,
    most_that_fit,
    parse_behaviors,
    plan_notes,
    precision,
    recurring,
    source_of,
)

INSTRUCTIONS = st.dictionaries(st.text(min_size=1), st.text(), max_size=4)


UNIT = {"question": (1.0, 0.0), "behavior_a": (1.0, 0.0), "behavior_b": (0.0, 1.0), "behavior_c": (0.6, 0.8)}


class Plane:
    """The card's unit vectors, by name."""

    parameters = 0

    def vectors(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        found = [UNIT[text.partition(":")[0]] for text in texts]
        return torch.tensor(found, dtype=torch.float64), 2 * len(texts)


BOOK = Handbook(
    [
        Behavior("behavior_a", "Do the first thing.", ("alg",), (source_of("one"),)),
        Behavior("behavior_b", "Do the second thing.", ("geo",), (source_of("two"),)),
        Behavior("behavior_c", "Do the third thing.", ("alg", "geo"), (source_of("three"), source_of("question"))),
    ]
)


def names(behaviors: Sequence[Behavior]) -> list[str]:
    return [behavior.name.removeprefix("behavior_") for behavior in behaviors]


def test_retrieval_of_the_card() -> None:
    book = Handbook([Behavior(b.name, b.instruction, b.topics) for b in BOOK.behaviors])
    two = Retriever(book, "embedding", 2, Plane()).retrieve("question", "geo")
    assert (names(two.behaviors), two.by, two.tokens) == (["a", "c"], "embedding", 2)
    geo = Retriever(book, "topic", 1, Plane()).retrieve("question", "geo")
    assert (names(geo.behaviors), geo.by) == (["c", "b"], "topic")  # all of the topic, the most similar first
    for topic in (None, "unknown"):
        assert Retriever(book, "topic", 3, Plane()).retrieve("question", topic).by == "embedding"
    assert Retriever(Handbook(), "topic").retrieve("question", "geo").behaviors == []


def test_a_source_question_gets_no_behavior_from_itself() -> None:
    assert names(Retriever(BOOK, "embedding", 3, Plane()).retrieve("question").behaviors) == ["a", "b"]
    assert names(Retriever(BOOK, "topic", 3, Plane()).retrieve("question", "geo").behaviors) == ["b"]
    assert source_of("a  question\n") == source_of("a question") != source_of("another question")


def test_parser_of_the_card() -> None:
    parsed = parse_behaviors('Sure! {"angle_sum": "Use 180 minus the known angles."} Done.')
    assert parsed is not None
    assert parsed.behaviors == [("behavior_angle_sum", "Use 180 minus the known angles.")]


@pytest.mark.parametrize(
    ("reply", "kept", "dropped"),
    [
        ('{"behavior_a": "Do the  first\\nthing."}', [("behavior_a", "Do the first thing.")], 0),
        ('the set {1, 2}, then {"a": "Do the first thing."} {"b": "x"}', [("behavior_a", "Do the first thing.")], 0),
        (
            '{"behaviors": {"Behaviour Big-Step": "Take big steps."}}',
            [("behavior_big_step", "Take big steps.")],
            0,
        ),
        ('{"a": "Too short", "b": 3, "": "No name at all.", "c": "Close </think> it at once."}', [], 4),
        ('{"a": "' + "very " * 100 + 'long"}', [], 1),
        ("{}", [], 0),
    ],
)
def test_replies_are_cleaned(reply: str, kept: list[tuple[str, str]], dropped: int) -> None:
    assert parse_behaviors(reply) == (kept, dropped)


@pytest.mark.parametrize("reply", ["", "no JSON", "{", '{"a": "cut', "[1, 2]", "{" * 5_000, '{"a":' * 5_000])
def test_replies_without_an_object_are_malformed(reply: str) -> None:
    assert parse_behaviors(reply) is None


@given(st.text().filter(lambda text: "{" not in text), INSTRUCTIONS, st.text())
def test_the_first_object_is_found_in_any_text(before: str, value: dict[str, str], after: str) -> None:
    assert first_object(before + json.dumps(value) + after) == value


@given(st.text(alphabet='{}[]":,\\ab1 \n'))
def test_any_text_is_read_or_refused(text: str) -> None:
    parsed = parse_behaviors(text)
    assert parsed is None or all(re.fullmatch(r"behavior_[a-z0-9_]+", name) for name, _ in parsed.behaviors)


@given(st.text())
def test_names_have_their_form_and_keep_it(text: str) -> None:
    name = behavior_name(text)
    assert name == "" or re.fullmatch(r"behavior_[a-z0-9_]+", name)
    assert behavior_name(name) == name


def test_a_duplicate_name_is_one_behavior_with_two_sources() -> None:
    book = Handbook()
    assert book.add(Behavior("behavior_a", "The first one stays.", ("alg",), ("q1",)))
    assert not book.add(Behavior("behavior_a", "The second one goes.", ("geo",), ("q2",)))
    assert book.behaviors == [Behavior("behavior_a", "The first one stays.", ("alg", "geo"), ("q1", "q2"))]


def test_near_duplicates_are_merged_above_the_threshold_only() -> None:
    def book() -> Handbook:
        return Handbook(BOOK.behaviors)

    assert book().merge(Plane(), 0.8) == 0  # b and c have cosine 0.8
    merged = book()
    assert merged.merge(Plane(), 0.79) == 1
    assert names(merged.behaviors) == ["a", "b"]
    assert merged.behaviors[1].topics == ("geo", "alg")
    assert book().merge(Plane(), 1.0) == 0
    same = Handbook([Behavior("behavior_x", "Add the units first."), Behavior("behavior_x2", "Add the units first.")])
    assert same.merge(NGrams(), 0.8) == 1


def test_a_handbook_survives_json_and_a_broken_one_is_refused() -> None:
    assert Handbook.of(json.loads(json.dumps(BOOK.values()))).behaviors == BOOK.behaviors
    for broken in ([{"name": "behavior_a"}], ["behavior_a"], 3):
        with pytest.raises(ThriftyError, match="thrifty tune"):
            Handbook.of(broken)  # type: ignore[arg-type]  # broken


@pytest.mark.parametrize(
    ("instruction", "answer", "found"),
    [
        ("Take 12 from both sides.", "12", True),
        ("Take 12 from both sides.", "-12.0", True),
        ("Take 112 from both sides.", "12", False),
        ("Halve 1,200 at once.", "1200", True),
        ("Multiply by 1/2 in the end.", "\\frac{1}{2}", True),
        ("Multiply by 1/2 in the end.", "2", False),
        ("Say that Zoey is a knight.", "Zoey is a knight", True),
        ("Choose A if it fits.", "A", False),
        ("Take 12 from both sides.", None, False),
        ("Take 12 from both sides.", " ", False),
    ],
)
def test_an_instruction_that_holds_the_answer_leaks(instruction: str, answer: str | None, found: bool) -> None:
    assert leaks(instruction, answer) is found


def test_plans_give_notes_without_their_numbers() -> None:
    text = "Plan:\n1. Start with 45.\n2. Go on with +5 -6, one term a line.\n3. Stop.\n\n4. Work it out.\n45+5"
    assert plan_notes(text) == ["Start with N.", "Go on with N, one term a line."]
    assert plan_notes("no plan") == []


def test_what_recurs_comes_from_several_questions() -> None:
    def noted(source: str, instruction: str, name: str = "behavior_a") -> Behavior:
        return Behavior(name, instruction, (), (source,))

    often, again = [noted("q1", "Do it."), noted("q2", "Do it.")], [noted("q1", "Do more."), noted("q3", "Do more.")]
    twice_of_one, other = [noted("q1", "Do that.")] * 2, [noted("q1", "Do it.", "behavior_b")] * 2
    found = recurring([*twice_of_one, *often, *other, *again], 2)
    assert [b.line for b in found] == ["behavior_a_1: Do it."] * 2 + ["behavior_a_2: Do more."] * 2
    assert [b.sources for b in found] == [("q1",), ("q2",), ("q1",), ("q3",)]


def test_citations_and_their_precision() -> None:
    text = "By behavior_angle_sum, 180. By \\text{behavior\\_carry\\_one} and behavior_angle_sum."
    assert cited(text) == ["behavior_angle_sum", "behavior_carry_one"]
    assert precision(cited(text), ["behavior_angle_sum"]) == 0.5
    assert precision([], ["behavior_angle_sum"]) is None


@given(st.integers(0, 50), st.integers(0, 60))
def test_as_many_as_fit(count: int, limit: int) -> None:
    assert most_that_fit(count, lambda n: n <= limit) == min(count, limit)
