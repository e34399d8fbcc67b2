"""The default task: nine families of reasoning-gym in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from thrifty.errors import UnknownName
from thrifty.spec import format_spec
from thrifty.tasks.base import Task
from thrifty.tasks.reasoning_gym import ReasoningGymTask
from thrifty.tasks.splits import Split
from thrifty.traces.trace import Problem

LEVELS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "easy": {
        "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        "products": {"min_digits": 1, "max_digits": 1},
        "leg_counting": {"min_animals": 1, "max_animals": 2, "max_instances": 5},
        "gcd": {"max_value": 30},
        "simple_equations": {"min_terms": 2, "max_terms": 2, "max_value": 10},
        "letter_counting": {"min_words": 1, "max_words": 2},
        "number_sorting": {"min_numbers": 3, "max_numbers": 3, "max_decimals": 0},
        "knights_knaves": {"n_people": 2, "depth_constraint": 2, "width_constraint": 2},
    },
    # What the pebbles, the models that come with this package, are mostly trained on.
    "default": {
        "chain_sum": {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2},
        "products": {"min_digits": 1, "max_digits": 2},
        "leg_counting": {"min_animals": 2, "max_animals": 3, "max_instances": 15},
        "gcd": {"max_value": 100},
        "simple_equations": {"min_terms": 2, "max_terms": 3, "max_value": 20},
        "letter_counting": {"min_words": 3, "max_words": 5},
        "number_sorting": {"min_numbers": 4, "max_numbers": 5, "max_decimals": 0},
        "gsm_symbolic": {},
        "knights_knaves": {"n_people": 2, "depth_constraint": 2, "width_constraint": 2},
    },
    "hard": {
        "chain_sum": {"min_terms": 4, "max_terms": 6, "min_digits": 2, "max_digits": 3},
        "products": {"min_digits": 2, "max_digits": 3},
        "leg_counting": {"min_animals": 4, "max_animals": 6, "max_instances": 15},
        "gcd": {"max_value": 1000},
        "simple_equations": {"min_terms": 3, "max_terms": 4, "max_value": 50},
        "letter_counting": {"min_words": 6, "max_words": 10},
        "number_sorting": {"min_numbers": 6, "max_numbers": 8, "max_decimals": 1},
        "gsm_symbolic": {},
        "knights_knaves": {"n_people": 3, "depth_constraint": 2, "width_constraint": 2},
    },
}
"""The families of each level, in the order in which they take turns, and their options."""


class MixTask(Task):
    """Sums, products, legs, divisors, equations, letters, sorting, word problems and knights in turn, at three levels.

    A problem's family is ``metadata["family"]``. Small families of the easy level run out after a dozen test
    questions; the others go on.
    """

    def __init__(self, level: str = "default") -> None:
        """Choose a level.

        Args:
            level: ``easy``, ``default`` or ``hard``. The easy one has no word problems.

        Raises:
            UnknownName: there is no such level.
            MissingExtra: reasoning-gym is not installed.
        """
        if level not in LEVELS:
            raise UnknownName("level of mix", level, LEVELS)
        self.name = format_spec("mix", {} if level == "default" else {"level": level})
        self._families = {family: ReasoningGymTask(family, options) for family, options in LEVELS[level].items()}

    def problems(self, limit: int | None = None, seed: int = 0, split: Split = "test") -> Iterator[Problem]:
        """Yield a problem of each family in turn; see `ReasoningGymTask.problems`."""
        sources = [task.problems(None, seed, split) for task in self._families.values()]
        return islice(_in_turn(sources), limit)

    def extract(self, problem: Problem, text: str) -> str | None:
        """Return the final answer that a response states."""
        return self._family_of(problem).extract(problem, text)

    def score(self, problem: Problem, answer: str | None) -> float:
        """Return 1.0 if the answer is right, else 0.0."""
        return self._family_of(problem).score(problem, answer)

    def _family_of(self, problem: Problem) -> ReasoningGymTask:
        family = problem.metadata.get("family", "")
        if family not in self._families:
            raise UnknownName("family of mix", family, self._families)
        return self._families[family]


def _in_turn(sources: list[Iterator[Problem]]) -> Iterator[Problem]:
    while sources:
        for source in list(sources):
            problem = next(source, None)
            if problem is None:
                sources.remove(source)
            else:
                yield problem
