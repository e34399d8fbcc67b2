"""The one grammar in which users name methods and tasks: ``name(option=value,...)``, joined by commas."""

from __future__ import annotations

import ast
import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from thrifty.errors import ThriftyError

MAX_LENGTH = 10_000
"""Characters of the longest specification that is read."""

_PAIRS = {"(": ")", "[": "]", "{": "}"}
_NOT_IN_A_NAME = re.compile(r"[()=,'\"]")
_BOOLEANS = {"true": True, "false": False}


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Take a specification apart.

    Values are Python literals where they parse as such (``true`` and ``false`` too), else bare strings; quotes
    keep a string a string. Nothing is evaluated.

    >>> parse_spec("rg:chain_sum(min_terms=2, level=hard, pair=(1, 2))")
    ('rg:chain_sum', {'min_terms': 2, 'level': 'hard', 'pair': (1, 2)})

    Args:
        text: ``name`` or ``name(option=value,...)``.

    Returns:
        The name and the options in the order given.

    Raises:
        ThriftyError: the text does not follow the grammar.
    """
    text = text.strip()
    parts = list(_split(text, "("))  # also checks that brackets and quotes are paired
    name = parts[0].strip()
    if not name or _NOT_IN_A_NAME.search(name):
        raise ThriftyError(f"cannot read {_shown(text)}: write name or name(option=value)")
    if len(parts) == 1:
        return name, {}
    if len(parts) > 2 or not text.endswith(")"):
        raise ThriftyError(f"cannot read {_shown(text)}: nothing may follow the options in brackets")
    inside = parts[1][:-1]
    options: dict[str, Any] = {}
    for item in _split(inside, ",") if inside.strip() else ():
        key, equals, value = (piece.strip() for piece in item.partition("="))
        if not equals or not key.isidentifier() or not value:
            raise ThriftyError(f"cannot read option {_shown(item.strip())} of {_shown(name)}: write option=value")
        if key in options:
            raise ThriftyError(f"option {key!r} of {_shown(name)} is given twice: keep one")
        options[key] = _value(value)
    return name, options


def format_spec(name: str, options: Mapping[str, Any]) -> str:
    """Write a specification that `parse_spec` reads back to the same name and options.

    Args:
        name: what is named.
        options: values that Python literals can express.
    """
    if not options:
        return name
    return f"{name}({','.join(f'{key}={_written(value)}' for key, value in options.items())})"


def split_specs(text: str, separator: str = ",") -> list[str]:
    """Split a list of specifications at the separators that stand outside brackets and quotes.

    >>> split_specs("a,b(c=1,d=2)+e")
    ['a', 'b(c=1,d=2)+e']

    Args:
        text: specifications, for example what a user gave to ``--methods``.
        separator: one character: a comma between alternatives, ``+`` between composed methods.

    Returns:
        The pieces, stripped; none is empty.

    Raises:
        ThriftyError: a piece is empty, or a bracket or quote has no partner.
    """
    pieces = [piece.strip() for piece in _split(text, separator)]
    if not all(pieces):
        raise ThriftyError(f"cannot read {_shown(text)}: something is missing beside a {separator!r}")
    return pieces


def _split(text: str, separator: str) -> Iterator[str]:
    """Yield the pieces between top-level separators; an opening bracket is a separator if asked for."""
    if len(text) > MAX_LENGTH:
        raise ThriftyError(f"cannot read {_shown(text)}: a specification has {MAX_LENGTH} characters at the most")
    expected: list[str] = []
    quote = ""
    start = 0
    position = 0
    while position < len(text):
        character = text[position]
        if quote:
            if character == "\\":
                position += 1
            elif character == quote:
                quote = ""
        elif character == separator and not expected:
            yield text[start:position]
            start = position + 1
        elif character in "'\"":
            quote = character
        if not quote and character in _PAIRS:
            expected.append(_PAIRS[character])
        elif not quote and character in _PAIRS.values() and (not expected or expected.pop() != character):
            raise ThriftyError(f"cannot read {_shown(text)}: {character!r} closes a bracket that is not open")
        position += 1
    if quote or expected:
        missing = quote or expected[-1]
        raise ThriftyError(f"cannot read {_shown(text)}: a closing {missing} is missing")
    yield text[start:]


def _value(text: str) -> Any:
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    try:
        with warnings.catch_warnings():
            # A bare string may look like odd Python ('1or2'); what the compiler thinks of it is no news to a user.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _written(value: Any) -> str:
    if isinstance(value, str) and _reads_as_bare(value):
        return value
    return repr(value)


def _reads_as_bare(value: str) -> bool:
    if not value or value != value.strip() or re.search(r"[()\[\]{}'\",=\\\n]", value):
        return False
    return bool(_value(value) == value)


def _shown(text: str) -> str:
    """Quote what a user wrote, on one line and short."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def checked_options(kind: Any, options: dict[str, Any], owner: str) -> dict[str, Any]:
    """Return options as the fields of a dataclass want them.

    Args:
        kind: the dataclass; a default of None takes any value.
        options: as a user wrote them.
        owner: whose they are, for messages.

    Raises:
        ThriftyError: an option that it does not have, or a value of the wrong type.
    """
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name, value in options.items():
        if name not in known:
            listed = ", ".join(known) or "none"
            raise ThriftyError(f"{owner} has no option {name!r}; it has: {listed}")
        default = known[name].default
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            options[name] = float(value)
        elif default is not None and default is not dataclasses.MISSING and type(default) is not type(value):
            raise ThriftyError(
                f"option {name!r} of {owner} is a {type(default).__name__} (default {default!r}), not {value!r}"
            )
    return options
