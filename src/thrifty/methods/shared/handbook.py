"""Handbooks of behaviors: short notes on how to reason, read from replies, cleaned, kept, and found again."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from thrifty.errors import ThriftyError
from thrifty.methods.shared.clusters import ngram_vectors, sentence_model
from thrifty.traces.answers import normal, quantity
from thrifty.traces.plans import titles

PREFIX = "behavior_"
LEAST_WORDS, MOST_CHARACTERS = 3, 400
"""An instruction is one sentence: what has fewer words says nothing, what is longer is a solution."""
TELLING = 6
"""Characters of an answer in words from which a text that holds it gives it away."""
CHUNK = 64
"""Texts that a sentence model reads at once."""

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:\s?/\s?\d+)?")
_NUMBERS = re.compile(r"(?<!\w)[-+]?\d+(?:\.\d+)?(?:[ ,]+[-+]?\d+(?:\.\d+)?)*")
_MARKUP = re.compile(r"</?\|?\w+\|?>")
_CITED = re.compile(rf"\b{PREFIX}[a-z0-9_]*[a-z0-9]")


# ----------------------------------------------------------------------------------------------------------
# Reading what a strategist writes


def first_object(text: str) -> dict[str, Any] | None:
    """Return the first balanced JSON object of a text, None if there is none.

    Args:
        text: with whatever stands around it; a brace that opens no valid object is passed over.
    """
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        try:
            found = decoder.raw_decode(text, match.start())[0]
        except (ValueError, RecursionError):
            continue
        assert isinstance(found, dict)
        return found
    return None


def behavior_name(text: str) -> str:
    """Return a name with the prefix, in small letters, digits and underscores; empty if nothing remains of it.

    ``angle_sum`` and ``Behaviour Angle-Sum`` give ``behavior_angle_sum``.
    """
    name = re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")
    name = re.sub(r"^behaviou?r(?:_|$)", "", name)
    return PREFIX + name if name else ""


class Parsed(NamedTuple):
    """Behaviors of a reply as pairs of name and instruction, and how many were dropped."""

    behaviors: list[tuple[str, str]]
    dropped: int


def parse_behaviors(text: str) -> Parsed | None:
    """Read ``{name: instruction}``; objects within the object count as part of it, names get their prefix.

    Dropped are names of no letters, and instructions that are no text, too short, too long, or hold markup, which
    could end a turn or a think block.

    Args:
        text: a strategist's reply.

    Returns:
        None if it holds no JSON object.
    """
    found = first_object(text)
    if found is None:
        return None
    inner = [value for value in found.values() if isinstance(value, dict)]
    pairs = [pair for part in [found, *inner] for pair in part.items() if not isinstance(pair[1], dict)]
    kept = []
    for name, instruction in pairs:
        name = behavior_name(name)
        instruction = " ".join(instruction.split()) if isinstance(instruction, str) else ""
        usable = len(instruction.split()) >= LEAST_WORDS and len(instruction) <= MOST_CHARACTERS
        if name and usable and not _MARKUP.search(instruction):
            kept.append((name, instruction))
    return Parsed(kept, len(pairs) - len(kept))


def plan_notes(text: str) -> list[str]:
    """Return the lines of the plan with which a text begins, each once, numbers replaced by "N".

    "Go on with +5 -6, one term a line." gives "Go on with N, one term a line.".

    Args:
        text: a numbered plan, up to the first blank line.
    """
    notes = dict.fromkeys(_NUMBERS.sub("N", title) for title in titles(text.partition("\n\n")[0]))
    return [
        note
        for note in notes
        if len(note.split()) >= LEAST_WORDS and len(note) <= MOST_CHARACTERS and not _MARKUP.search(note)
    ]


def recurring(found: Sequence[Behavior], least: int) -> list[Behavior]:
    """Return those of a template's behaviors that come from several questions, named by topic and number.

    Short names cost few tokens in every prompt, and a small model copies them without mistakes.

    Args:
        found: behaviors whose names are their topics, each with one source.
        least: sources that a behavior needs.
    """
    sources: dict[tuple[str, str], set[str]] = {}
    for behavior in found:
        sources.setdefault((behavior.name, behavior.instruction), set()).update(behavior.sources)
    names: dict[tuple[str, str], str] = {}
    for name, instruction in (key for key, its in sources.items() if len(its) >= least):
        names[name, instruction] = f"{name}_{1 + sum(name == other for other, _ in names)}"
    return [
        replace(behavior, name=names[behavior.name, behavior.instruction])
        for behavior in found
        if (behavior.name, behavior.instruction) in names
    ]


def leaks(instruction: str, answer: str | None) -> bool:
    """Tell whether an instruction gives an answer away: it holds the number, whatever its sign, or the words.

    Args:
        instruction: of a behavior.
        answer: of its source question, None if there is none. Short words count for nothing, they stand everywhere.
    """
    if not (answer or "").strip():
        return False
    words = normal(answer or "")
    value = quantity(words)
    if value is None:
        return len(words) >= TELLING and words.casefold() in normal(instruction).casefold()
    numbers = (quantity(normal(match.group())) for match in _NUMBER.finditer(instruction))
    return any(number is not None and number.value == abs(value.value) for number in numbers)


def cited(text: str) -> list[str]:
    r"""Return the names of behaviors that a text mentions, each once, in order; ``behavior\_x`` is ``behavior_x``."""
    return list(dict.fromkeys(_CITED.findall(text.replace("\\_", "_").casefold())))


# ----------------------------------------------------------------------------------------------------------
# Keeping


def source_of(question: str) -> str:
    """Return what a question is known by: a hash of its text, blanks folded, so that ids of tasks don't matter."""
    return hashlib.sha256(" ".join(question.split()).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Behavior:
    """A note on how to reason.

    Attributes:
        name: ``behavior_`` and what it is about.
        instruction: one sentence that says what to do.
        topics: of the questions that it comes from.
        sources: those questions (see `source_of`).
    """

    name: str
    instruction: str
    topics: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Name and instruction: what a model reads and what is embedded."""
        return f"{self.name}: {self.instruction}"

    def joined(self, topics: Iterable[str], sources: Iterable[str]) -> Behavior:
        """Return it with further topics and sources."""
        both = (dict.fromkeys((*self.topics, *topics)), dict.fromkeys((*self.sources, *sources)))
        return replace(self, topics=tuple(both[0]), sources=tuple(both[1]))


class Embedder(Protocol):
    """What turns texts into vectors.

    Attributes:
        parameters: of its model, for the account.
    """

    parameters: int

    def vectors(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Return vectors of length 1 ``(texts, dimensions)``, and how many tokens a model read for them."""


class NGrams:
    """Counts of character n-grams: needs no model and no download."""

    parameters = 0

    def vectors(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """See `Embedder`."""
        return ngram_vectors(texts), 0


def embedder(name: str) -> Embedder:
    """Return the sentence model of that folder or hub id, loaded once; `NGrams` for an empty name."""
    return sentence_model(name) if name else NGrams()


class Handbook:
    """Behaviors by name, in the order in which they came.

    Args:
        behaviors: to begin with.
    """

    def __init__(self, behaviors: Iterable[Behavior] = ()) -> None:
        self._by_name: dict[str, Behavior] = {}
        for behavior in behaviors:
            self.add(behavior)

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def behaviors(self) -> list[Behavior]:
        """All of them."""
        return list(self._by_name.values())

    def add(self, behavior: Behavior) -> bool:
        """Add a behavior; of a name that is known the first instruction stays and the sources are joined.

        Returns:
            Whether the name is new.
        """
        known = self._by_name.get(behavior.name)
        self._by_name[behavior.name] = known.joined(behavior.topics, behavior.sources) if known else behavior
        return known is None

    def merge(self, with_: Embedder, threshold: float = 0.95) -> int:
        """Make near-duplicates one: each joins the first kept behavior that it is nearer to than a threshold.

        Args:
            with_: the embedder.
            threshold: cosine above which two are the same; nothing is above 1.

        Returns:
            How many went.
        """
        before, found = len(self), self.behaviors
        if threshold >= 1 or not found:
            return 0
        vectors = _embedded(with_, [behavior.line for behavior in found])
        kept: list[int] = []
        for i, behavior in enumerate(found):
            near = [k for k in kept if float(vectors[i] @ vectors[k]) > threshold]
            if near:
                found[near[0]] = found[near[0]].joined(behavior.topics, behavior.sources)
            else:
                kept.append(i)
        self._by_name = {found[i].name: found[i] for i in kept}
        return before - len(self)

    def values(self) -> list[dict[str, Any]]:
        """Return what `of` reads back, as JSON can hold it."""
        return [
            {"name": b.name, "instruction": b.instruction, "topics": list(b.topics), "sources": list(b.sources)}
            for b in self.behaviors
        ]

    @classmethod
    def of(cls, values: Iterable[Mapping[str, Any]]) -> Self:
        """Make a handbook of what `values` returned.

        Raises:
            ThriftyError: it is something else.
        """
        try:
            return cls(
                Behavior(str(v["name"]), str(v["instruction"]), tuple(map(str, v["topics"])), tuple(v["sources"]))
                for v in values
            )
        except (KeyError, TypeError) as error:
            raise ThriftyError(f"this is no handbook of behaviors ({error!r}): make it with `thrifty tune`") from error


# ----------------------------------------------------------------------------------------------------------
# Finding again


class Retrieved(NamedTuple):
    """Behaviors for a question, the most similar first, how they were found, and the tokens an embedder read."""

    behaviors: list[Behavior]
    by: str
    tokens: int


@dataclass(frozen=True)
class Retriever:
    """Find the behaviors for a question.

    Attributes:
        handbook: where to look.
        mode: ``topic``, all of the question's topic; ``embedding``, the ``k`` most similar.
        k: how many.
        embedder: its similarity ranks both.
    """

    handbook: Handbook
    mode: str = "topic"
    k: int = 40
    embedder: Embedder = field(default_factory=NGrams)

    @functools.cached_property
    def _vectors(self) -> Tensor:
        return _embedded(self.embedder, [behavior.line for behavior in self.handbook.behaviors])

    def retrieve(self, question: str, topic: str | None = None) -> Retrieved:
        """Return the behaviors for a question, none that comes from the question itself.

        Args:
            question: its text.
            topic: of the question; without one, or with one of which the handbook knows nothing, the embedding
                decides.
        """
        found = self.handbook.behaviors
        if not found:
            return Retrieved([], "none", 0)
        by_topic = self.mode == "topic" and any(topic in behavior.topics for behavior in found)
        source = source_of(question)
        vectors, tokens = self.embedder.vectors([question])
        order: list[int] = torch.sort(self._vectors @ vectors[0], descending=True, stable=True).indices.tolist()
        ranked = [found[i] for i in order if source not in found[i].sources]
        if by_topic:
            return Retrieved([b for b in ranked if topic in b.topics], "topic", tokens)
        return Retrieved(ranked[: self.k], "embedding", tokens)


def _embedded(with_: Embedder, texts: Sequence[str]) -> Tensor:
    """Return vectors ``(texts, dimensions)``, few texts at a time."""
    return torch.cat([with_.vectors(texts[i : i + CHUNK])[0] for i in range(0, len(texts), CHUNK)])


def most_that_fit(count: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to ``count`` that fits, 0 if none does; what fits fits with fewer, too."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def precision(names: Sequence[str], known: Collection[str]) -> float | None:
    """Return the share of mentioned names that were given, None where none is mentioned."""
    return round(sum(name in known for name in names) / len(names), 4) if names else None
