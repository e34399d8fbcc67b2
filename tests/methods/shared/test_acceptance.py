"""Sequential acceptance: the card's policy, thresholds against brute force, validation by question."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.errors import ThriftyError
from thrifty.methods.shared.acceptance import Labelled, calibrate_threshold, cross_validate, first_above, passes, play

score = st.none() | st.floats(-5, 5) | st.just(math.nan)


@st.composite
def question(draw: st.DrawFn) -> Labelled:
    size = draw(st.integers(1, 5))

    def several(values: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(values, min_size=size, max_size=size))

    answers = several(st.sampled_from(["1", "2", None]))
    correct = [answer == "1" for answer in answers]
    return Labelled(several(score), correct, answers, several(st.integers(1, 99)))  # type: ignore[arg-type]  # drawn as objects


def test_worked_policy_of_the_card() -> None:
    assert first_above([0.1, 0.9, 0.3, 0.2, 0.2], ["A", "B", "A", "C", "A"], 0.5) == (1, 2)
    assert first_above([0.1, 0.2, 0.3, 0.2, 0.2], ["A", "B", "A", "C", "A"], 0.5) == (0, 5)
    assert first_above([0.5, None, math.nan], ["A", "B", "B"], 0.5) == (1, 3)
    assert first_above([0.9], [None], 1.0) == (None, 1)


def test_an_undefined_score_never_passes() -> None:
    assert not passes(None, -math.inf)
    assert not passes(math.nan, -math.inf)
    assert passes(-5.0, -math.inf)
    assert not passes(math.inf, math.inf)


def test_play_on_worked_numbers() -> None:
    questions = [
        Labelled([0.1, 0.9], [False, True], ["1", "2"], [10, 20]),
        Labelled([0.8, 0.9], [False, True], ["1", "2"], [30, 40]),
    ]
    played = play(questions, 0.5)
    assert (played.accuracy, played.samples, played.tokens) == (0.5, 1.5, 30.0)
    assert calibrate_threshold(questions) == pytest.approx(0.8, abs=0.02)
    assert play(questions, calibrate_threshold(questions)).accuracy == 1.0


def test_of_equally_good_thresholds_the_one_that_draws_least() -> None:
    easy = [Labelled([0.1, 0.2, 0.3], [True] * 3, ["1"] * 3, [5] * 3)]
    assert play(easy, calibrate_threshold(easy)).samples == 1
    hopeless = [Labelled([0.1, 0.2, 0.3], [False] * 3, ["1"] * 3, [5] * 3)]
    assert play(hopeless, calibrate_threshold(hopeless)).samples == 1


def test_where_the_vote_is_better_nothing_is_accepted() -> None:
    questions = [Labelled([0.9, 0.1, 0.1], [False, True, True], ["2", "1", "1"], [5] * 3)]
    assert play(questions, calibrate_threshold(questions)).samples == 3


@given(st.lists(question(), min_size=1, max_size=6))
def test_no_threshold_is_better_than_the_calibrated_one(questions: list[Labelled]) -> None:
    """With fewer scores than quantiles, every score and what lies below all of them is tried."""
    scores = [s for q in questions for s in q.scores if s is not None and not math.isnan(s)]
    if not scores:
        with pytest.raises(ThriftyError, match="shorter windows"):
            calibrate_threshold(questions)
        return
    best = play(questions, calibrate_threshold(questions))
    for threshold in (-math.inf, *scores, math.inf):
        other = play(questions, threshold)
        assert (best.accuracy, -best.samples) >= (other.accuracy, -other.samples)


def test_validation_never_sees_the_question_that_it_judges() -> None:
    """Each question alone would be answered right by a threshold of its own, which the others do not give."""
    first = Labelled([0.5, 0.9], [False, True], ["1", "2"], [1, 1])  # wants the vote or .5 <= tau < .9
    second = Labelled([0.2, 0.1], [True, False], ["1", "2"], [1, 1])  # wants tau below .2, or the vote
    assert play([first], calibrate_threshold([first])).accuracy == 1.0
    assert play([second], calibrate_threshold([second])).accuracy == 1.0
    validated = cross_validate([first, second])
    expected = (
        play([first], calibrate_threshold([second])).accuracy + play([second], calibrate_threshold([first])).accuracy
    )
    assert validated.accuracy == expected / 2 < 1.0


def test_folds_weigh_by_their_questions() -> None:
    questions = [Labelled([0.5], [i < 3], ["1"], [i]) for i in range(7)]
    validated = cross_validate(questions)
    assert validated.accuracy == pytest.approx(3 / 7)
    assert validated.samples == 1
    assert validated.tokens == pytest.approx(3.0)
