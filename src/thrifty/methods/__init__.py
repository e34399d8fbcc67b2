"""Inference-time systems by name: the built-in ones and those that other packages register."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from thrifty.catalogue import CATALOGUE, status
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods.base import Composition, Method, build
from thrifty.models.base import Model
from thrifty.spec import parse_spec, split_specs

ENTRY_POINT_GROUP = "thrifty.methods"
FAMILY_PREFIX = "family:"
ALIASES = {"tldr-ts": "tldr"}
"""Further names of methods: of a paper with two systems, the one that works at inference."""


def list_methods() -> list[str]:
    """Return the names of all methods that can be run now."""
    return sorted({*_built_in(), *_plugins()})


@cache
def _built_in() -> tuple[str, ...]:
    found = (e for e in CATALOGUE.values() if e.module.startswith("thrifty.methods."))
    return tuple(entry.slug for entry in found if status(entry) == "available")


@cache
def _plugins() -> Mapping[str, EntryPoint]:
    # kept: to find them, all that is installed has to be looked through
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def method_class(slug: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        UnknownName: no such method; planned ones are named as such.
        ThriftyError: a package registers something that is not a method.
    """
    slug = ALIASES.get(slug, slug)
    if slug in _built_in():
        module = import_module(CATALOGUE[slug].module)
        return next(
            c
            for c in vars(module).values()
            if isinstance(c, type) and issubclass(c, Method) and vars(c).get("slug") == slug
        )
    if point := _plugins().get(slug):
        found = point.load()
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise ThriftyError(f"the package that registers method {slug!r} gives {point.value}, which is no Method")
        return found
    hint = f"{slug!r} is in the catalogue, but only planned." if slug in CATALOGUE else ""
    raise UnknownName("method", slug, list_methods(), hint)


def get_method(spec: str) -> Composition:
    """Return the method that a specification names.

    Args:
        spec: such as ``cgrs``, ``cap(budget=200)`` or ``cgrs(delta=0.8)+first-try``.

    Raises:
        UnknownName: a method that does not exist.
        ThriftyError: an option that does not exist, or a composition that cannot be.
    """
    parts = []
    for part in split_specs(spec, "+"):
        slug, options = parse_spec(part)
        parts.append(build(method_class(slug), options))
    return Composition(parts)


def expand_families(specs: Sequence[str], model: Model) -> tuple[list[str], list[str]]:
    """Replace each ``family:NAME`` by those of the family's methods that run on a model as they are.

    Args:
        specs: such as ``family:control`` and ``cap(budget=200)``.
        model: on which they are to run.

    Returns:
        The specifications, each once, and for each method that a family lost why it cannot run.

    Raises:
        UnknownName: there is no such family, or none of its methods is available yet.
    """
    expanded: list[str] = []
    reasons: list[str] = []
    for spec in specs:
        family = spec.removeprefix(FAMILY_PREFIX)
        kept, lost = split_by_access(family_methods(family), model) if family != spec else ([spec], [])
        expanded += kept
        reasons += lost
    return list(dict.fromkeys(expanded)), reasons


def family_methods(family: str) -> list[str]:
    """Return the available methods of a family, all but vanilla.

    Raises:
        UnknownName: there is no such family, or none of its methods is available yet.
    """
    found = [slug for slug in _built_in() if CATALOGUE[slug].family == family and slug != "vanilla"]
    if not found:
        raise UnknownName("family", family, sorted({CATALOGUE[slug].family for slug in _built_in()}))
    return found


def split_by_access(specs: Sequence[str], model: Model) -> tuple[list[str], list[str]]:
    """Return those of some specifications that run on a model, and for each of the others why it does not."""
    kept, reasons = [], []
    for spec in specs:
        try:
            get_method(spec).check(model)
            kept.append(spec)
        except ThriftyError as error:
            reasons.append(str(error))
    return kept, reasons


def tunable_class(slug: str) -> type[Method]:
    """Return the class of a method that `thrifty tune` can tune.

    Raises:
        UnknownName: no such method, or it has nothing to tune.
    """
    cls = method_class(slug)
    if cls.tune.__func__ is Method.tune.__func__:  # type: ignore[attr-defined]  # what a bound classmethod wraps
        others = [name for name in list_methods() if "tune" in vars(method_class(name))]
        raise UnknownName("method to tune", slug, others, f"{slug!r} has nothing to tune.")
    return cls
