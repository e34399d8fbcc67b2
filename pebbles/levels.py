"""What pebbles are trained on: the families of each level and their options.

They are to become the levels of the task `mix` together with the first model that knows them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
