from __future__ import annotations

from itertools import islice

import pytest

from thrifty.errors import BadTask, ThriftyError, UnknownName
from thrifty.tasks import load_task
from thrifty.tasks.mix import LEVELS, MixTask
from thrifty.traces.trace import Problem

TURN = list(LEVELS["default"])


def test_families_take_turns():
    families = [problem.metadata["family"] for problem in load_task("mix").problems(10)]
    assert len(TURN) == 9
    assert families == (TURN * 2)[:10]


def test_the_default_is_what_pebbles_are_trained_on():
    assert load_task("mix").name == load_task("mix(level=default)").name == "mix"
    assert LEVELS["default"]["chain_sum"] == {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2}
    assert set(LEVELS["hard"]) == set(TURN)
    assert set(TURN) - set(LEVELS["easy"]) == {"gsm_symbolic"}


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_is_deterministic_unique_and_a_prefix_of_itself(level):
    task = load_task(f"mix(level={level})")
    problems = list(task.problems(50, seed=1))
    assert problems == list(load_task(task.name).problems(50, seed=1))
    assert list(task.problems(10, seed=1)) == problems[:10]
    assert len({problem.question for problem in problems}) == len({problem.id for problem in problems}) == 50
    for problem in problems[:8]:
        assert task.score(problem, task.extract(problem, f"The answer is {problem.answer}.")) == 1.0
        if problem.metadata["family"] != "knights_knaves":  # whose scorer reads sentences
            assert task.score(problem, f"The answer is {problem.answer}.") == 0.0
        assert task.score(problem, None) == 0.0


def test_splits_share_no_question():
    task = load_task("mix(level=easy)")
    test = {problem.question for seed in (0, 1) for problem in task.problems(150, seed)}
    train = {problem.question for seed in (0, 1) for problem in task.problems(500, seed, "train")}
    assert not test & train


def test_the_others_go_on_when_a_family_runs_out():
    problems = load_task("mix(level=easy)").problems(200)
    late = [problem.metadata["family"] for problem in islice(problems, 180, 200)]
    assert "products" not in late
    assert set(late) == set(LEVELS["easy"]) - {"products"}


def test_levels_get_harder():
    def digits(level: str) -> float:
        problems = list(load_task(f"mix(level={level})").problems(40))
        return sum(character.isdigit() for problem in problems for character in problem.question) / len(problems)

    assert digits("easy") < digits("default") < digits("hard")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mix(level=harder)", "Did you mean hard"),
        ("mix(level=3)", "level must be text"),
        ("mix(level=[1])", "level must be text"),
        ("mix(levels=hard)", "Known: level"),
        ("mix(level=hard", r"closing \) is missing"),
    ],
)
def test_a_mistake_gets_one_line(name, said):
    with pytest.raises(ThriftyError, match=said) as caught:
        load_task(name)
    assert "\n" not in str(caught.value)


def test_seeds_are_checked_at_once():
    with pytest.raises(BadTask, match="out of range"):
        MixTask().problems(1, seed=-1)


def test_a_problem_of_another_task_is_refused():
    with pytest.raises(UnknownName, match="family of mix"):
        MixTask().score(Problem.ask("?", "1"), "1")
