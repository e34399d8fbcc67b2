"""The problem families that pebbles learn: one module each, named as in reasoning-gym."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from families import (
    chain_sum,
    gcd,
    gsm_symbolic,
    knights_knaves,
    leg_counting,
    letter_counting,
    number_sorting,
    products,
    simple_equations,
)
from lesson import Lesson

FAMILIES: dict[str, Callable[[dict[str, Any]], Lesson]] = {
    module.__name__.removeprefix("families."): module.lesson
    for module in (
        chain_sum,
        gcd,
        gsm_symbolic,
        knights_knaves,
        leg_counting,
        letter_counting,
        number_sorting,
        products,
        simple_equations,
    )
}
