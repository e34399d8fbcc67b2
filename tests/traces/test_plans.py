"""Plans: taking responses apart, and how much of a plan an execution carries out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.traces.plans import Phases, alignment, lcs, same_step, similarity, split_phases, states_answer, titles

SHORT = st.text("abc", max_size=12)


def lcs_by_table(a: str, b: str) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return row[-1]


def test_worked_numbers_of_the_card() -> None:
    plan = "1. factor the number\n2. count divisors"
    execution = "1. factor the number fully\n2. add terms"
    assert titles(plan) == ["factor the number", "count divisors"]
    assert alignment(plan, execution) == 0.5
    assert lcs(["solve", "for", "x"], ["we", "solve", "x"]) == 2
    assert same_step("solve for x", "we solve x")
    assert not same_step("count divisors", "add terms")


@given(SHORT, SHORT)
def test_the_bit_parallel_subsequence_is_the_one_of_the_table(a: str, b: str) -> None:
    assert lcs(a, b) == lcs_by_table(a, b) == lcs(list(b), list(a))
    assert 0 <= similarity(a, b) <= 1
    assert (similarity(a, b) == 1) == (a == b)


def test_phases_are_split_at_the_first_execution_marker() -> None:
    whole = "<EXPLORATION>\n1. Add.\n</EXPLORATION>\n<EXECUTION>\n1. 2 + 2 = 4\n</EXECUTION>"
    assert split_phases(whole) == Phases("1. Add.", "1. 2 + 2 = 4")
    assert split_phases("1. Add.\n<EXECUTION>done<EXECUTION> twice") == Phases("1. Add.", "done twice")
    assert split_phases("<EXPLORATION>1. Add.") == Phases("1. Add.", "")
    assert split_phases("<EXECUTION>at once") == Phases("", "at once")
    assert alignment(*split_phases("<EXECUTION>1. at once")) == 0


def test_titles_are_those_of_numbered_lines_without_asterisks() -> None:
    assert titles("Plan:\n1. **Halve** both.\n  2. Then\n- no\n3.5 is no step\n**12. Bold** end") == [
        "Halve both.",
        "Then",
        "Bold end",
    ]


def test_a_title_of_one_word_matches_easily_unless_two_are_asked_for() -> None:
    assert same_step("add up", "up")
    assert not same_step("add up", "up", minimum_words=2)
    assert same_step("add up", "we add it up", minimum_words=2)
    assert alignment("1. add up", "1. up") == 1
    assert alignment("1. add up", "1. up", minimum_words=2) == 0


@pytest.mark.parametrize(
    "plan", ["1. Multiply.\n2. The answer is 12.", "1. Give \\boxed{3}", "So 12 is right.", "It matches, 4."]
)
def test_a_plan_that_gives_the_answer_away_is_found(plan: str) -> None:
    assert states_answer(plan)


@pytest.mark.parametrize(
    "plan", ["", "1. Start with 1.\n2. Go on with -7 +5.", "1. drink: 8 * 3\n2. left: now - given"]
)
def test_a_plan_with_the_numbers_of_the_question_gives_nothing_away(plan: str) -> None:
    assert not states_answer(plan)
