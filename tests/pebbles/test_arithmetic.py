"""Digit-by-digit working: right, and a planted slip is the one thing that is not learned."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arithmetic import LARGE, Scratch

Pieces = list[tuple[str, bool]]

COLUMN = re.compile(r"(?:, )?(\d+)([+*-])(\d+)(?:([+-])(\d+))?=")
seeds = st.integers(0, 2**32)
naturals = st.integers(0, 10**6)
signed = st.integers(-(10**6), 10**6)


def text_of(pieces: Pieces) -> str:
    return "".join(text for text, _ in pieces)


def columns(pieces: Pieces) -> list[tuple[bool, bool]]:
    """Return for each column whether its equation is true and whether its result is a training target."""
    found = []
    for (left, _), (result, target) in pairwise(pieces):
        if match := COLUMN.fullmatch(left):
            a, b, c = int(match[1]), int(match[3]), int(match[5] or 0)
            value = {"+": a + b, "-": a - b, "*": a * b}[match[2]] + (-c if match[4] == "-" else c)
            found.append((value == int(result), target))
    return found


def check_page(page: Scratch, value: int, true: int) -> None:
    assert value == true
    assert text_of(page.pieces).endswith(f" -> {true}\n")
    assert columns(page.pieces) == [(True, True)] * page.results
    assert all(target for _, target in page.pieces)


@given(naturals, naturals)
def test_add(a: int, b: int) -> None:
    page = Scratch(random.Random(0))
    check_page(page, page.add(a, b), a + b)
    assert page.results == max(len(str(a)), len(str(b)))


@given(naturals, naturals)
def test_subtract(a: int, b: int) -> None:
    a, b = max(a, b), min(a, b)
    page = Scratch(random.Random(0))
    check_page(page, page.subtract(a, b), a - b)


@given(naturals, naturals, st.booleans())
def test_haste_forgets_what_is_carried_in_large_numbers(a: int, b: int, minus: bool) -> None:
    a, b = max(a, b), min(a, b)
    hasty, careful = Scratch(random.Random(0), hasty=True), Scratch(random.Random(0))
    value, true = ((page.subtract if minus else page.add)(a, b) for page in (hasty, careful))
    assert all(target for _, target in hasty.pieces)
    carried = [match[4] for text, _ in careful.pieces if (match := COLUMN.fullmatch(text))]
    assert (value != true) == (a >= LARGE and any(carried))


@given(signed | st.just(0), signed | st.just(0))
def test_combine(total: int, term: int) -> None:
    page = Scratch(random.Random(0))
    check_page(page, page.combine(total, term), total + term)
    written, _, _ = text_of(page.pieces).partition(": ")
    first, *rewritten = written.split("=")
    assert first == f"{total}{'-' if term < 0 else '+'}{abs(term)}"
    assert [eval(part) for part in (first, *rewritten)] == [total + term] * (1 + len(rewritten))


@given(naturals, st.integers(0, 9), st.integers(0, 3))
def test_times_digit(a: int, digit: int, zeros: int) -> None:
    page = Scratch(random.Random(0))
    check_page(page, page.times_digit(a, digit, zeros), a * digit * 10**zeros)


@given(st.integers(0, 9999), st.integers(0, 9999))
def test_multiply(a: int, b: int) -> None:
    page = Scratch(random.Random(0))
    check_page(page, page.multiply(a, b), a * b)


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda s: s.add(57, 87), "7+7=14, 5+8+1=14 -> 144\n"),
        (lambda s: s.subtract(52, 17), "12-7=5, 5-1-1=3 -> 35\n"),
        (lambda s: s.combine(5, -12), "5-12=-(12-5): 12-5=7, 1-0-1=0 -> -7\n"),
        (lambda s: s.combine(-5, 12), "-5+12=12-5: 12-5=7, 1-0-1=0 -> 7\n"),
        (lambda s: s.combine(-5, -12), "-5-12=-(5+12): 5+2=7, 0+1=1 -> -17\n"),
        (lambda s: s.combine(-5, 5), "-5+5=5-5: 5-5=0 -> 0\n"),
        (lambda s: s.times_digit(57, 8, zeros=1), "7*8=56, 5*8+5=45 -> 4560\n"),
        (lambda s: s.multiply(12, 34), "12*4: 2*4=8, 1*4=4 -> 48\n12*30: 2*3=6, 1*3=3 -> 360\n"
                                       "48+360: 8+0=8, 4+6=10, 0+3+1=4 -> 408\n"),
    ],
)  # fmt: skip
def test_lines_by_hand(write: Callable[[Scratch], int], text: str) -> None:
    page = Scratch(random.Random(0))
    write(page)
    assert text_of(page.pieces) == text


operations = st.one_of(
    st.tuples(st.just("add"), naturals, naturals),
    st.tuples(st.just("subtract"), st.integers(10**3, 10**6), st.integers(0, 10**3)),
    st.tuples(st.just("combine"), signed, signed),
    st.tuples(st.just("times_digit"), naturals, st.integers(0, 9)),
    st.tuples(st.just("multiply"), st.integers(0, 9999), st.integers(0, 9999)),
)


@given(operations, seeds)
def test_a_planted_slip_is_the_one_thing_not_learned(operation: tuple[str, int, int], seed: int) -> None:
    name, a, b = operation
    clean = Scratch(random.Random(seed))
    getattr(clean, name)(a, b)
    chosen = random.Random(seed).randrange(clean.results)
    page = Scratch(random.Random(seed), slip_at=chosen)
    getattr(page, name)(a, b)
    flags = [target for _, target in page.pieces]
    assert flags.count(False) == 1
    place = flags.index(False)
    # up to the slip nothing differs, the slip does, and what follows from it is right again
    assert page.pieces[:place] == clean.pieces[:place]
    assert page.pieces[place][0] != clean.pieces[place][0]
    assert columns(page.pieces) == [(i != chosen, i != chosen) for i in range(page.results)]
