"""Prompt lookup: what it finds, and that it changes nothing but the number of passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.collaborate.prompt_lookup import PromptLookupDrafter, continuation
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem, Trace


def solve(model: TorchModel, spec: str, count: int = 3, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 90, "batch_size": 3, **values})
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=5), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def written(traces: dict[str, Trace]) -> dict[str, Any]:
    return {k: ([(s.kind, s.ids) for s in t.segments], t.stop_reason, t.usage.total) for k, t in traces.items()}


def by_scanning(ids: Sequence[int], longest: int) -> int | None:
    for n in range(min(longest, len(ids)), 0, -1):
        for start in range(len(ids) - n):
            if list(ids[start : start + n]) == list(ids[-n:]):
                return start + n
    return None


def test_the_longest_match_wins_and_of_equals_the_first() -> None:
    text = [1, 2, 3, 4, 9, 2, 3, 5, 9, 3, 6, 2, 3]
    assert continuation(text, {}, 0, 3) == 3  # 2 3 first stood before 4
    assert continuation(text, {}, 0, 1) == 3  # and so did 3
    assert continuation([*text, 5], {}, 0, 3) == 8  # 2 3 5 before 9
    assert continuation([*text, 7], {}, 0, 3) is None
    assert continuation([], {}, 0, 3) is None


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 4))
def test_the_index_finds_what_scanning_finds(ids: list[int], longest: int) -> None:
    first: dict[tuple[int, ...], int] = {}
    known = 0
    for end in range(len(ids) + 1):
        if end % 3 == 0 or end == len(ids):  # several tokens may have come since the last time
            assert continuation(ids[:end], first, known, longest) == by_scanning(ids[:end], longest)
            known = end


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("spec", ["vanilla", "cap(budget=30)", "cgrs", "first-try", "concisehint(alpha=24)"])
def test_the_response_is_the_same_token_for_token(pebble64: TorchModel, spec: str, temperature: float) -> None:
    plain = solve(pebble64, spec, temperature=temperature)
    drafted = solve(
        pebble64, "prompt-lookup" if spec == "vanilla" else f"{spec}+prompt-lookup", temperature=temperature
    )
    assert written(plain) == written(drafted)
    passes = [sum(t.usage.forward_passes for t in traces.values()) for traces in (plain, drafted)]
    assert passes[1] < passes[0]
    assert sum(t.usage.drafted for t in drafted.values()) > 0


def test_no_tokens_are_the_plain_model(toy: TorchModel) -> None:
    plain, none = (solve(toy, spec, max_tokens=40) for spec in ("vanilla", "prompt-lookup(tokens=0)"))
    assert written(plain) == written(none)
    assert all(none[k].usage.forward_passes == t.usage.forward_passes for k, t in plain.items())
    assert all(t.usage.drafted == 0 for t in none.values())


def test_the_batch_changes_nothing(pebble64: TorchModel) -> None:
    one, three = (solve(pebble64, "prompt-lookup", temperature=0.8, batch_size=n) for n in (1, 3))
    assert written(one) == written(three)
    assert [t.usage.forward_passes for t in one.values()] == [three[k].usage.forward_passes for k in one]


def test_mistakes_get_one_line() -> None:
    with pytest.raises(ThriftyError, match="tokens must be at least 0"):
        get_method("prompt-lookup(tokens=-1)")
    with pytest.raises(ThriftyError, match="longest at least 1"):
        get_method("prompt-lookup(longest=0)")
    with pytest.raises(ThriftyError, match="both draft"):
        get_method("stand+prompt-lookup")


def test_a_draft_holds_ten_tokens_at_the_most(toy: TorchModel) -> None:
    prompt = [1, *range(50, 80)]
    row = Row(Job(Problem.ask("?")), Settings(), toy, 0, prompt, toy.tracker.start(""))
    row.record(1, forced=False)
    (draft,) = PromptLookupDrafter(10, 3).propose([row])
    assert list(draft.tokens) == list(range(50, 60))
    assert list(draft.parents) == list(range(-1, 9))
