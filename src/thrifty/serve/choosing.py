"""Which model and method a request means, and what a client may ask of a method.

A method's options may name files, models to load and addresses to call. Those are the operator's to give: a client
may set numbers within bounds, switches, and words from fixed lists; for the rest the operator offers a specification
under a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.errors import UnknownName
from thrifty.serve.bodies import Thrifty
from thrifty.serve.engine import Served
from thrifty.serve.errors import Refusal
from thrifty.spec import format_spec, parse_spec, split_specs

CHOICES = frozenset(
    {
        "ask", "count", "cost", "aggregate", "divisor", "h2", "handover", "levels", "mode", "noise", "on_decline",
        "place", "policy", "prompts", "schedule", "scorer", "select", "selector", "share", "signal", "strategy",
        "style", "verification",
    }
)  # fmt: skip
"""Options whose values are words from a fixed list, which their methods check."""
OPERATOR_ONLY = {"arm": "it runs code that the model writes"}
"""Methods that a client may not choose on its own, and why."""
MOST_PARTS = 4
MOST = 64
"""The largest number of things, such as samples, that a client may ask of a method."""
MOST_TOKENS = 1 << 20
"""The largest number of tokens likewise."""
_ADDRESS = re.compile(r"https?://[^#'\"]*#?")
_IN_TOKENS = ("budget", "minimum", "maximum", "window", "cap", "alpha", "tokens", "at_least", "checkpoint", "k_stop")


@dataclass(frozen=True)
class Choice:
    """What answers a request.

    Attributes:
        served: the model.
        method: the specification, None where the client named none.
    """

    served: Served
    method: str | None


def choose(model: str, thrifty: Thrifty | None, served: Sequence[Served]) -> Choice:
    """Return what answers a request.

    Args:
        model: as the client wrote it: ``MODEL`` or ``MODEL@METHOD``.
        thrifty: the field of that name.
        served: the models that there are.

    Raises:
        Refusal: no such model, two methods at once, or more than a client may ask for.
    """
    known = {one.id: one for one in served}
    name, suffix = model, ""
    if model not in known:
        name, _, suffix = model.rpartition("@")
    if name not in known:
        told = UnknownName("model", model.partition("@")[0][:200], known)
        raise Refusal(str(told), 404, "model_not_found", "model")
    own = thrifty.method if thrifty else None
    if suffix and own:
        raise Refusal(f"model names method {suffix!r} and thrifty.method {own!r}: give one of them", 400, None, "model")
    if thrifty and thrifty.params and not own:
        raise Refusal("thrifty.params belong to thrifty.method, which is missing", 400, None, "thrifty.method")
    method = suffix or own
    if not method:
        return Choice(known[name], None)
    param = "model" if suffix else "thrifty.method"
    offered = known[name].methods
    if method in offered:
        if thrifty and thrifty.params:
            raise Refusal(f"{method!r} is offered as it stands: leave out thrifty.params", 400, None, "thrifty.params")
        return Choice(known[name], offered[method])
    return Choice(known[name], _allowed(method, (thrifty and thrifty.params) or {}, param))


def _allowed(method: str, params: Mapping[str, Any], param: str) -> str:
    """Return a client's specification with its params, or refuse it."""
    try:
        parts = [parse_spec(part) for part in split_specs(method, "+")]
    except Refusal:
        raise
    except Exception as error:
        raise Refusal(str(error), 400, "invalid_value", param) from None
    if len(parts) > MOST_PARTS:
        raise Refusal(f"at most {MOST_PARTS} methods can be composed here", 400, "invalid_value", param)
    if params and len(parts) > 1:
        raise Refusal(
            "thrifty.params go with a single method: write options of several as 'cgrs(delta=0.8)+first-try'",
            400,
            "invalid_value",
            "thrifty.params",
        )
    for slug, options in parts:
        if slug in OPERATOR_ONLY:
            raise _reserved(f"method {slug!r}", OPERATOR_ONLY[slug], param)
        options.update(params)
        for name, value in options.items():
            _check_option(slug, name, value, "thrifty.params" if name in params else param)
    return "+".join(format_spec(slug, options) for slug, options in parts)


def _check_option(slug: str, name: str, value: Any, param: str) -> None:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        most = MOST_TOKENS if any(word in name for word in _IN_TOKENS) else MOST
        if not -MOST_TOKENS <= value <= most:
            raise Refusal(f"option {name!r} of {slug!r} is at most {most} here", 400, "invalid_value", param)
        return
    if isinstance(value, tuple) and len(value) <= MOST and all(type(item) in (int, float) for item in value):
        for item in value:
            _check_option(slug, name, item, param)
        return
    if not (isinstance(value, str) and name in CHOICES):
        raise _reserved(f"option {name!r} of {slug!r}", "it may name files, models or words to write", param)


def _reserved(what: str, why: str, param: str) -> Refusal:
    return Refusal(
        f"{what} is the operator's to choose, for {why}: ask for `thrifty serve --offer NAME='SPECIFICATION'`, and "
        "then for MODEL@NAME",
        400,
        "operator_only",
        param,
    )


def without_addresses(spec: str) -> str:
    """Return a specification as clients may see it: helpers by the names of their models.

    >>> without_addresses("thoughtmani(helper='http://10.0.0.7:8001/v1#small')")
    "thoughtmani(helper='small')"

    Args:
        spec: as the operator wrote it.
    """
    return _ADDRESS.sub("", spec)
