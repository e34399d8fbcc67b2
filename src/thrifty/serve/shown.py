"""From tokens to what a client sees: whole characters, no think markers, nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from thrifty.serve.engine import Channel, Piece, TokenLogprob
from thrifty.traces.think import MarkerFilter
from thrifty.traces.trace import Phase

if TYPE_CHECKING:
    from thrifty.models.torch import TorchModel


class StopFilter:
    """Cut a text that comes in pieces where the first stop string begins.

    What may be the beginning of one is held back until that is certain.

    Args:
        stop: the strings; none for a text that is only passed on.

    Attributes:
        stopped: whether one was found.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._longest = max(map(len, stop), default=1) - 1
        self._held = ""
        self.stopped = False

    @property
    def holds(self) -> bool:
        """Whether anything is held back."""
        return bool(self._held)

    def feed(self, text: str, last: bool = False) -> str:
        """Take a piece in; return what is certain by now.

        Args:
            text: the piece, perhaps empty.
            last: whether nothing follows.
        """
        if self.stopped:
            return ""
        whole = self._held + text
        # the first to be complete ends the text, or what is found would depend on where pieces end
        found = [(place + len(string), place) for string in self._stop if (place := whole.find(string)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return whole[: min(found)[1]]
        sizes = () if last else range(min(self._longest, len(whole)), 0, -1)
        kept = next((n for n in sizes if any(string.startswith(whole[-n:]) for string in self._stop)), 0)
        self._held = whole[len(whole) - kept :]
        return whole[: len(whole) - kept]


class Shown:
    """What a client has been shown of one response, and what the next token adds to it.

    Args:
        model: whose tokens they are.
        stop: strings that end the answer.
        closed: whether the prompt has closed the thinking.
    """

    def __init__(self, model: TorchModel, stop: Sequence[str] = (), closed: bool = False) -> None:
        self._model = model
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._markers = MarkerFilter(model.think, behind=closed)
        self._stop = StopFilter(stop)
        self._tokens = {"thinking": 0, "answer": 0}
        self._logprobs: list[TokenLogprob] = []
        self._phase: Phase = "answer"

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stop.stopped

    def feed(self, phase: Phase, tokens: Iterable[int], logprobs: Sequence[TokenLogprob] = ()) -> list[Piece]:
        """Take tokens in.

        Args:
            phase: of all of them; asides are not shown.
            tokens: their ids.
            logprobs: of them, where they are wanted.

        Returns:
            What can be shown now.
        """
        if phase == "aside":
            return []
        self._phase = phase
        pieces: list[Piece] = []
        for place, token in enumerate(tokens):
            if token in self._model.eos_ids:
                continue
            self._tokens[phase] += 1
            if logprobs and phase == "answer":
                self._logprobs.append(logprobs[place])
            pieces += self._show(phase, self._decoder.decode(self._model.texts.bytes_of(token)))
        return pieces

    def end(self) -> list[Piece]:
        """Return what was held back; the response has ended."""
        return self._show(self._phase, self._decoder.decode(b"", final=True), last=True)

    def _show(self, phase: Phase, text: str, last: bool = False) -> list[Piece]:
        pieces: list[Piece] = []
        for of, certain in self._markers.feed(phase, text, last):
            pieces += self._piece("thinking" if of == "thinking" else "answer", certain)
        if last:
            pieces += self._piece("answer", "", last)
        if not (pieces or self._markers.holds or self._stop.holds or self._decoder.getstate()[0]):
            self._logprobs = []  # of a marker, of blanks behind it, or of what follows a stop string
        return pieces

    def _piece(self, channel: Channel, text: str, last: bool = False) -> list[Piece]:
        if channel == "answer":
            text = self._stop.feed(text, last)
        if not text:
            return []
        tokens, self._tokens[channel] = self._tokens[channel], 0
        logprobs: tuple[TokenLogprob, ...] = ()
        if channel == "answer":
            logprobs, self._logprobs = tuple(self._logprobs), []
        return [Piece(channel, text, tokens, logprobs)]
