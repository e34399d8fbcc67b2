"""Think blocks: how model families mark them, and the only code that knows their markers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from thrifty.errors import ThriftyError, UnknownName
from thrifty.traces.tokens import Automaton
from thrifty.traces.trace import Phase


@dataclass(frozen=True)
class ThinkFormat:
    """How a model family marks its thinking.

    Attributes:
        name: of the format.
        open: text that begins a think block; empty for a model without think blocks.
        close: text whose completion ends it.
        force_open: what to write to begin a block in the model's stead.
        force_close: what to write to end it and begin the answer.
    """

    name: str
    open: str
    close: str
    force_open: str
    force_close: str

    @property
    def thinks(self) -> bool:
        """Whether the model has think blocks at all."""
        return bool(self.open)


THINK_FORMATS = {
    f.name: f
    for f in (
        # DeepSeek-R1, QwQ, Qwen3, pebble
        ThinkFormat("think", "<think>", "</think>", "<think>\n", "</think>\n\n"),
        # gpt-oss
        ThinkFormat(
            "harmony",
            "<|channel|>analysis<|message|>",
            "<|channel|>final<|message|>",
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        # Magistral
        ThinkFormat("mistral", "[THINK]", "[/THINK]", "[THINK]", "[/THINK]"),
        ThinkFormat("none", "", "", "", ""),
    )
}

CLOSERS = tuple(f.close for f in THINK_FORMATS.values() if f.thinks)
MARKERS = (*CLOSERS, *(f.open for f in THINK_FORMATS.values() if f.thinks))
"""What the known formats begin and end their thinking with."""
_MOST_BLANKS = 256
"""That are held back because a think block may begin behind them."""


def think_format(name: str) -> ThinkFormat:
    """Return a format by name, or one made of ``OPEN,CLOSE`` markers.

    Raises:
        UnknownName: neither a known name nor two markers.
        ThriftyError: one marker contains the other, so that a stream could not tell them apart.
    """
    if name in THINK_FORMATS:
        return THINK_FORMATS[name]
    opening, comma, closing = name.partition(",")
    if comma and opening and closing:
        if opening in closing or closing in opening:
            raise ThriftyError(
                f"think format {name!r}: one marker contains the other; give both in full: --think '<a>,</a>'"
            )
        return ThinkFormat(name, opening, closing, f"{opening}\n", f"{closing}\n\n")
    raise UnknownName("think format", name, THINK_FORMATS, "Or give the markers themselves: --think '<a>,</a>'.")


def detect_think_format(template: str, vocabulary: Sequence[str] = ()) -> ThinkFormat:
    """Tell the think format from a chat template and the special tokens of a vocabulary.

    Args:
        template: the chat template's source, empty if there is none.
        vocabulary: added and special tokens.

    Returns:
        The format; ``none`` if nothing speaks for another.
    """
    special = set(vocabulary)
    for name in ("harmony", "mistral", "think"):
        found = THINK_FORMATS[name]
        marks = ("<|channel|>",) if name == "harmony" else (found.open, found.close)
        if any(m in template or m in special for m in marks):
            return found
    return THINK_FORMATS["none"]


@dataclass(slots=True)
class Phases:
    """Where one stream stands: written by `PhaseTracker.feed`.

    Attributes:
        phase: of the next token.
        state: of the automaton.
        blocks: think blocks begun so far.
        closed: think blocks ended so far; a closer outside a block is not one.
        final: whether the thinking has ended for good: what would open another block is text.
    """

    phase: Phase
    state: int = 0
    blocks: int = 0
    closed: int = 0
    final: bool = False


class PhaseTracker:
    """Follow the think blocks of token streams.

    It also reports the ends of lines and paragraphs, which the same automaton finds on its way.
    Markers may be split over tokens, opened in the prompt, closed twice or never. A closer in a stream
    that never opened a block also counts: R1 writes ``</think>`` only, for its template opens the block.

    Args:
        format: the markers.
        bytes_of: what a token id spells.
    """

    LINE, PARAGRAPH, OPEN, CLOSE = range(4)

    def __init__(self, format: ThinkFormat, bytes_of: Callable[[int], bytes]) -> None:
        self.format = format
        markers = [format.open, format.close] if format.thinks else []
        self.automaton = Automaton(["\n", "\n\n", *markers], bytes_of)

    def start(self, prompt: str, question: str = "") -> Phases:
        """Return the phase in which a response to this prompt begins.

        Only what follows the last closer counts: earlier turns may hold think blocks of their own.

        Args:
            prompt: as the model reads it.
            question: the last text in it that may mention markers without meaning them.
        """
        if not self.format.thinks:
            return Phases("answer")
        prompt = self._behind(prompt, question.strip())
        if prompt.rfind(self.format.open) > prompt.rfind(self.format.close):
            return Phases("thinking", blocks=1)
        # an empty block, as templates write it to turn thinking off: a closer of the model would be a repeated one
        ended = int(prompt.rstrip().endswith(self.format.close))
        return Phases("answer", blocks=ended, closed=ended)

    def _behind(self, prompt: str, question: str) -> str:
        """Return what follows a question in a prompt, the whole prompt if it is not to be found there."""
        markers = re.finditer("|".join(map(re.escape, (self.format.open, self.format.close))), prompt)
        spans = [match.span() for match in markers]
        end = len(prompt)
        while question and (start := prompt.rfind(question, 0, end)) >= 0:
            stop = start + len(question)
            # a short question may be found within a marker: "hi" is no question in "<think>"
            inside = any(first <= start and stop <= last for first, last in spans)
            if not inside or ((start, stop) in spans and prompt.rfind(question, 0, start) < 0):
                return prompt[stop:]
            end = stop - 1
        return prompt

    def feed(self, phases: Phases, token: int) -> tuple[int, ...]:
        """Advance a stream by one token.

        A token that completes a closer still belongs to the thinking, one that completes an opener
        belongs to it already: read `Phases.phase` before and after.

        Returns:
            What was completed within the token, in order: of `LINE`, `PARAGRAPH`, `OPEN`, `CLOSE`.
        """
        phases.state, found = self.automaton.feed(phases.state, token)
        for index in found:
            if index <= self.PARAGRAPH:
                continue
            if index == self.OPEN and phases.phase == "answer" and not phases.final:
                phases.phase = "thinking"
                phases.blocks += 1
            elif index == self.CLOSE and (phases.phase == "thinking" or phases.blocks == 0):
                phases.blocks = max(phases.blocks, 1)
                phases.phase = "answer"
                phases.closed += 1
        return found


class _Signs:
    """What tells markers from other text in pieces."""

    def __init__(self, markers: Iterable[str]) -> None:
        longest_first = sorted(markers, key=len, reverse=True)
        self.find = re.compile("|".join(map(re.escape, longest_first)) or "(?!)").search
        self._beginnings = frozenset(marker[:size] for marker in longest_first for size in range(1, len(marker)))
        self._firsts = re.compile("|".join({re.escape(marker[0]) for marker in longest_first}) or "(?!)").finditer
        self._longest = max(map(len, self._beginnings), default=0)

    def unsure(self, text: str) -> int:
        """Return how many characters at the end of a text may be the beginning of a marker."""
        for match in self._firsts(text, max(len(text) - self._longest, 0)):
            if text[match.start() :] in self._beginnings:
                return len(text) - match.start()
        return 0


_known_signs = cache(lambda *more: _Signs({*MARKERS, *more}))


class MarkerFilter:
    """Take the think markers out of a text that comes in pieces, and the blanks behind each of them.

    What may be the beginning of a marker is held back until that is certain.

    Args:
        format: the markers; those that close a block by force count as well.
        behind: whether the text begins behind a marker.
    """

    def __init__(self, format: ThinkFormat, behind: bool = False) -> None:
        found = {format.open, format.close, format.force_open.strip(), format.force_close.strip()} - {""}
        self._signs = _Signs(found)
        self._held: list[tuple[Phase, str]] = []
        self._behind = behind

    @property
    def holds(self) -> bool:
        """Whether anything is held back."""
        return bool(self._held)

    def feed(self, phase: Phase, text: str, last: bool = False) -> list[tuple[Phase, str]]:
        """Take a piece in.

        Args:
            phase: that it belongs to.
            text: of it, perhaps empty.
            last: whether nothing follows, so that nothing needs to be held back.

        Returns:
            What is certain by now, with its phase; no text among it is empty.
        """
        self._held.append((phase, text))
        whole = "".join(text for _, text in self._held)
        shown: list[tuple[Phase, str]] = []
        while match := self._signs.find(whole):
            shown += self._take(match.start())
            self._drop(len(match[0]))
            whole = whole[match.end() :]
            self._behind = True
        return shown + self._take(len(whole) - (0 if last else self._signs.unsure(whole)))

    def _drop(self, count: int) -> list[tuple[Phase, str]]:
        """Take some characters off what is held."""
        taken: list[tuple[Phase, str]] = []
        while self._held and count >= 0:
            phase, text = self._held[0]
            taken.append((phase, text[:count]))
            if len(text) > count:
                self._held[0] = (phase, text[count:])
                break
            count -= len(text)
            del self._held[0]
        return [(phase, text) for phase, text in taken if text]

    def _take(self, count: int) -> list[tuple[Phase, str]]:
        """Take some characters off what is held, less the blanks behind a marker."""
        shown: list[tuple[Phase, str]] = []
        for phase, text in self._drop(count):
            text = text.lstrip() if self._behind else text
            if text:
                self._behind = False
                shown.append((phase, text))
        return shown


class Splitter:
    """Tells thinking from answer in a text that comes in pieces.

    An opener counts only where nothing but space stands between it and the start or the last closer. The first
    closer ends the thinking even where the prompt had opened it. Anything else that looks like a marker is text.

    Args:
        opened: whether the prompt has opened a block.
        markers: whether to keep the markers; without them the blanks behind them go, too, and an empty piece of
            thinking stands for each.
        format: whose markers count beside those of the known formats.

    Attributes:
        closed_by: ``model`` if it closed its last block, ``prompt`` while there was none, None within one.
        opened_by: who opened the first block: ``prompt``, ``model``, None while there was none.
    """

    def __init__(self, opened: bool = False, markers: bool = True, format: ThinkFormat | None = None) -> None:
        own = (format.open, format.close) if format is not None and format.thinks else ()
        self._signs, self._closers = _known_signs(*own), (*CLOSERS, *own[1:])
        self.closed_by: str | None = None if opened else "prompt"
        self.opened_by: str | None = "prompt" if opened else None
        self._phase: Phase = "thinking" if opened else "answer"
        self._fresh = True
        self._held = ""
        self._reasoned = False
        self._markers, self._behind = markers, False

    def reasoned(self) -> None:
        """Take note that the server tells the thinking apart.

        From here a lone closer amid the content is text, and a think block there repeats what was told.
        """
        self._reasoned = True
        if self.closed_by != "model":
            self._fresh |= self._phase == "thinking"
            self._phase, self.closed_by, self._behind = "answer", "model", True

    def feed(self, text: str, last: bool = False) -> list[tuple[Phase, str]]:
        """Take a piece of text in; return what is certain by now, with its phase."""
        self._held += text
        pieces: list[tuple[Phase, str]] = []
        while found := self._signs.find(self._held):
            taken, self._held = self._held[: found.end()], self._held[found.end() :]
            phase = self._pass(taken, found.group())
            pieces.append((phase, self._kept(taken, found.group() if phase == "thinking" else "")))
        ready = len(self._held) if last else self._certain()
        if ready:
            taken, self._held = self._held[:ready], self._held[ready:]
            self._fresh = self._fresh and self._phase == "answer" and not taken.strip()
            pieces.append((self._phase, self._kept(taken)))
        return [(p, t) for p, t in pieces if not (self._reasoned and p == "thinking") and (t or p == "thinking")]

    def _kept(self, text: str, marker: str = "") -> str:
        """Return what is to be seen of a text that ends with a marker, or with none."""
        if self._markers:
            return text
        text = text.removesuffix(marker)
        text = text.lstrip() if self._behind or (marker and not text.strip()) else text
        self._behind = bool(marker) or (self._behind and not text)
        return text

    def _pass(self, taken: str, marker: str) -> Phase:
        """Go past a marker; return the phase of what ends with it."""
        closer = marker in self._closers
        fresh = self._fresh and not taken[: -len(marker)].strip()
        if self._phase == "thinking" or (closer and (fresh or self.closed_by == "prompt")):
            if closer:
                self.opened_by = self.opened_by or "prompt"
                self._phase, self.closed_by, self._fresh = "answer", "model", True
            return "thinking"
        if fresh and not closer:
            self.opened_by = self.opened_by or "model"
            self._phase, self.closed_by = "thinking", None
            return "thinking"
        self._fresh = False
        return "answer"

    def _certain(self) -> int:
        """Return how much of the held text is surely no part of a marker nor the space before one."""
        certain = len(self._held) - self._signs.unsure(self._held)
        blank = self._phase == "answer" and self._fresh and not self._held[:certain].strip()
        return 0 if blank and certain <= _MOST_BLANKS else certain


def split_thinking(text: str, format: ThinkFormat, opened: bool = False) -> tuple[str, str | None]:
    """Split a finished response into its thinking and its answer, markers removed.

    Args:
        text: the response.
        format: its markers.
        opened: whether the prompt had already opened the block.

    Returns:
        The thinking of all blocks, and the answer; the answer is None if the last block never ended.
    """
    if not format.thinks:
        return "", text
    thinking: list[str] = []
    answer = ""
    inside = opened
    if not opened and format.close in text and format.open not in text[: text.find(format.close)]:
        inside = True
    rest = text
    while rest:
        if inside:
            block, closer, rest = rest.partition(format.close)
            thinking.append(block.replace(format.open, ""))  # opened in the prompt and once more by the model
            if not closer:
                return "".join(thinking), None
        else:
            part, opener, rest = rest.partition(format.open)
            answer += part.replace(format.close, "")
            if not opener:
                break
        inside = not inside
    return "".join(thinking), None if inside else answer
