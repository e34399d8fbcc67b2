r"""Recorded traces played back as a model: what cutting, stopping and selecting would have saved and cost on them.

A file of JSON lines holds one recording a line:

- ``question``: text, as the model was asked; problems are matched with it by content, blanks apart;
- ``response``: all that the model wrote, its think markers included. Where the prompt had opened the block (as for
  DeepSeek-R1 and QwQ), the response holds the closing marker only;
- ``answer``: the reference, which the task ``replay:FILE`` reads; so it does ``id`` and ``kind``, if they are there;
- ``sample``, if it is there: the place among the recordings of a question, which are its samples; else they count
  in the order of the lines;
- ``model``, if it is there: who wrote it. A file holds recordings of one model.

To the decode loop a replay is a language model: its vocabulary is the pieces of text of the file, and all probability
lies on the piece that was recorded next. So methods that watch the text and close the thinking or stop (cap,
first-try, s1 without a minimum, the loop stop) run on it as they are. **After a forced close the recording no longer
tells what the model would have written. The replay then answers with the last candidate answer that was stated before
the cut (`extract_candidates`), as ``\boxed{...}``, or with nothing if none was, and ends.** Each trace says in
``events["replayed"]`` what became of its recording: ``whole``, ``cut`` so, or ``stopped`` by a limit before its end.

Such an answer is shorter than one that a model writes: compare thinking tokens, not totals. Anything else that is
written into the response is refused, for nobody recorded what would have followed.

Recordings bring no token ids: all tokens are counted in pieces (a word with its blank, a digit, a sign, a newline, a
think marker). That is about the scale of a tokenizer, and the same for everything that is measured on one file.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.errors import MissingAccess, ThriftyError
from thrifty.models.cache import RowCache
from thrifty.models.torch import Layout, TorchModel
from thrifty.spec import parse_spec
from thrifty.traces.answers import extract_candidates
from thrifty.traces.think import PhaseTracker, ThinkFormat, detect_think_format
from thrifty.traces.tokens import TokenTexts
from thrifty.traces.trace import Message

END = 0
"""The token that ends a response; it spells nothing."""

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff"
_PIECE = rf"[{_IDEOGRAPHS}]| ?[^\W\d_{_IDEOGRAPHS}]+|\d|\n|[^\S\n]+(?![^\W\d_])|[^\S\n]|."
_REMEDY = "cap, first-try and s1 without a minimum run on it; for this, load a model that writes"


@dataclass(frozen=True)
class Recording:
    """One recorded response.

    Attributes:
        question: what was asked.
        response: all that the model wrote, think markers included.
        sample: its place among the recordings of the question.
        model: who wrote it, empty if that is not known.
    """

    question: str
    response: str
    sample: int = 0
    model: str = ""


def read_recordings(path: str | Path) -> list[Recording]:
    """Read a file of recordings, described at the head of this module.

    Raises:
        ThriftyError: there is no such file, or a line of it is no recording; the message names the line.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ThriftyError(f"cannot read the recordings {path}: {error.strerror}; check the path") from error
    found: list[Recording] = []
    places: dict[tuple[str, int], int] = {}
    counts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
            question, response = (_text(record, field) for field in ("question", "response"))
            key = _content(question)
            sample = record.get("sample", counts.get(key, 0))
            if not isinstance(sample, int) or isinstance(sample, bool) or sample < 0:
                raise ValueError("its sample is no whole number from 0: mend or remove it")
            if (before := places.setdefault((key, sample), number)) != number:
                raise ValueError(f"sample {sample} of its question stands on line {before} already: number the samples")
            counts[key] = counts.get(key, 0) + 1
            found.append(Recording(question, response, sample, str(record.get("model") or "")))
            if found[-1].model != found[0].model:
                raise ValueError(f"it is by model {found[-1].model!r}, others by {found[0].model!r}: one file a model")
        except (ValueError, RecursionError) as error:
            reason = "it is no JSON in UTF-8" if type(error) is not ValueError else str(error)
            raise ThriftyError(f"{path} line {number}: {reason}") from None
    if not found:
        raise ThriftyError(f'{path} holds no recording: write lines such as {{"question": "...", "response": "..."}}')
    return found


def _text(record: object, field: str) -> str:
    if not isinstance(record, Mapping):
        raise ValueError('it holds no JSON object such as {"question": "...", "response": "...", "answer": "..."}')
    text = record.get(field)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"its {field} is missing, empty or not text: write it as text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"its {field} holds half of a surrogate pair: remove it") from None
    return text


def _content(question: str) -> str:
    return " ".join(question.split())


class PieceTexts(TokenTexts):
    """A vocabulary of pieces of text: `END`, the 256 bytes for what it has not learnt, and what it has.

    Args:
        markers: texts that are one piece each wherever they stand.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        self._special = frozenset({END})
        self._pieces = {END: b"", **{1 + byte: bytes([byte]) for byte in range(256)}}
        self._ids: dict[str, int] = {}
        self._cut = re.compile("|".join([*(re.escape(m) for m in markers if m), _PIECE]), re.DOTALL)

    def __len__(self) -> int:
        return len(self._pieces)

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that a token spells; one that names a recording spells nothing."""
        return self._pieces.get(token, b"")

    def learn(self, text: str) -> array[int]:
        """Add the pieces of a text and return its token ids."""
        for piece in set(self._cut.findall(text)) - self._ids.keys():
            self._ids[piece] = len(self._pieces)
            self._pieces[self._ids[piece]] = piece.encode()
        return array("i", self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; pieces that were never learnt become bytes."""
        ids: list[int] = []
        for piece in self._cut.findall(text):
            known = self._ids.get(piece)
            ids += [1 + byte for byte in piece.encode()] if known is None else [known]
        return ids


class ReplayModel(TorchModel):
    """Recordings as a model: every verb of a session works, and there is nothing to compute.

    What follows a position is a function of two numbers, a script (a recording, or the end of one that was cut)
    and how much of it was played. They stand in the cache where a network has keys and values, so that rows fork,
    rewind and move as those of any model do.

    Args:
        recordings: of one model, at least one.
        name: as the user would load it again.
        think: how the recordings mark thinking; None to read it off them.
    """

    gives: ClassVar[Need] = Need.TEXT | Need.SAMPLING
    texts: PieceTexts

    def __init__(self, recordings: Sequence[Recording], name: str, think: ThinkFormat | None = None) -> None:
        self.name = name
        self.recordings = recordings
        self.think = think or detect_think_format("\n".join(r.response for r in recordings))
        self.texts = PieceTexts((self.think.open, self.think.close))
        self.tracker = PhaseTracker(self.think, self.texts.bytes_of)
        self.template = ""
        self.layers, self.hidden_size, self.parameters, self.context_length = 1, 0, 0, 1 << 30
        self.eos_ids = frozenset({END})
        self._closer = self.texts.learn("\n" + self.think.force_close).tolist() if self.think.thinks else []
        self.close_length = len(self._closer)
        self._scripts: list[Sequence[int]] = []
        self._by_question: dict[str, list[int]] = {}
        for index, recording in enumerate(recordings):
            self.texts.learn(recording.question)
            self._scripts.append(self.texts.learn(recording.response) + array("i", [END]))
            self._by_question.setdefault(_content(recording.question), []).append(index)
        for samples in self._by_question.values():
            samples.sort(key=lambda index: recordings[index].sample)
        self._cuts: dict[tuple[int, int], int] = {}
        self.vocabulary_size = len(self.texts)
        self._only = f"{name!r} only plays recordings back: {_REMEDY}"
        heads = [r.response.partition(self.think.close) for r in recordings if self.think.thinks]
        explicit = sum(self.think.open in head for head, _, _ in heads)
        implicit = sum(bool(closer) and self.think.open not in head for head, closer, _ in heads)
        # a response without markers is a thought that never ended, unless the model opens its blocks itself
        self._opener = f"\n{self.think.force_open}" if heads and implicit >= explicit else ""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return torch.float32

    def require(self, needs: Need, method: str) -> None:
        """Refuse a method that does more than cut, stop or select.

        Raises:
            MissingAccess: names what is missing.
            ThriftyError: the method would write something that nobody recorded.
        """
        if missing := needs & ~self.gives:
            raise MissingAccess(f"method {method!r} needs {', '.join(missing.names)}, but {self._only}")
        slug, options = parse_spec(method)
        if slug == "no-think" or (slug == "cap" and options.get("budget") == 0):
            raise ThriftyError(f"method {method!r} answers without thinking, but {self._only}")
        if slug == "s1" and (options.get("minimum") or options.get("closing")):
            raise ThriftyError(f"method {method!r} writes into the thinking, but {self._only}")

    def render(self, messages: Sequence[Message], **template_options: Any) -> str:
        """Return the question, and the opening marker if the recorded model's prompt had opened the block."""
        return "\n\n".join(m["content"] for m in messages) + self._opener

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        return self.texts.encode(text)

    def encode_prompt(self, text: str, sample: int = 0) -> list[int]:
        """Return the token ids of a prompt: its pieces, then a token that names the recording to be played.

        Args:
            text: what `render` returned.
            sample: which of the recordings of its question.

        Raises:
            ThriftyError: there is no such recording.
        """
        key = _content(text.removesuffix(self._opener))
        samples = self._by_question.get(key)
        if samples is None:
            raise ThriftyError(
                f"{self.name!r} holds no recording of {key[:60]!r}: take the task {self.name} or one with the same "
                "questions, and no method that rewrites prompts"
            )
        if sample >= len(samples):
            raise ThriftyError(
                f"{self.name!r} holds {len(samples)} recordings of {key[:60]!r}, no sample {sample + 1}: "
                f"ask for {len(samples)} at the most"
            )
        return [*self.encode(text), self.vocabulary_size + samples[sample]]

    def flops(self, positions: int, context: int) -> float:
        """Return 0: a recording computes nothing."""
        return 0.0

    def notes(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> dict[str, str]:
        """Return what the events of a trace say of its recording.

        Args:
            prompt_ids: of the trace, from `encode_prompt`.
            ids: of the response.
        """
        text, whole = self.texts.text(ids), self.recordings[prompt_ids[-1] - self.vocabulary_size].response
        return {"replayed": "whole" if text == whole else "stopped" if whole.startswith(text) else "cut"}

    def forward(
        self,
        cache: RowCache,
        inputs: Tensor,
        lengths: Tensor,
        longest: int,
        equal: bool,
        keep: Tensor | None,
        layout: Layout | None = None,
    ) -> Tensor:
        """Follow the scripts of some rows over new tokens; see `TorchModel.forward`.

        Returns:
            Logits ``(rows, kept, vocab)``: 0 for the token that comes next, minus infinity for all others.

        Raises:
            ThriftyError: a token neither was recorded nor ends the thinking.
        """
        layer = cache.layers[0]
        before: Iterable[tuple[int, int]] = [(-1, 0)] * len(inputs)
        if longest:
            newest = (torch.arange(layer.rows)[cache.plan.rows], 0, lengths - 1, 0)
            before = zip(layer.keys[newest].tolist(), layer.values[newest].tolist(), strict=True)
        states = torch.tensor([self._follow(*b, tokens) for b, tokens in zip(before, inputs.tolist(), strict=True)])
        layer.update(states[:, None, :, :1], states[:, None, :, 1:])
        shown = states if keep is None else states[:, keep]
        following = [[self._scripts[s][played] if s >= 0 else END for s, played in row] for row in shown.tolist()]
        logits = torch.full((*shown.shape[:2], self.vocabulary_size), -torch.inf)
        return logits.scatter_(2, torch.tensor(following)[:, :, None], 0.0)

    def _follow(self, script: int, played: int, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Return the state after each of some tokens; in a prompt there is no script yet."""
        states = []
        for token in tokens:
            if token >= self.vocabulary_size:
                script = token - self.vocabulary_size
            elif script >= 0 and token != END:  # which also fills up rows that get no token
                if token == self._scripts[script][played]:
                    played += 1
                else:
                    script, played = self._leave(script, played, token)
            states.append((script, played))
        return states

    def _leave(self, script: int, played: int, token: int) -> tuple[int, int]:
        """Return the state after a token that was not recorded: the thinking is being closed."""
        ids = self._scripts[script]
        for skipped in (0, 1):  # the newline before the marker is written where a line has begun only
            closer = self._closer[skipped:]
            # what was recorded may agree with the beginning of the forced close
            for agreed in range(min(played, len(closer) - 1), -1, -1):
                begins = list(ids[played - agreed : played]) == closer[:agreed]
                if script < len(self.recordings) and begins and token == closer[agreed]:
                    return self._cut(script, played - agreed), skipped + agreed + 1
        written = self.texts.text([token])
        raise ThriftyError(f"a method writes {written!r} into a response, but {self._only}")

    def _cut(self, recording: int, at: int) -> int:
        """Return the script of a forced close at some token of a recording, and of the answer that follows it."""
        if (recording, at) not in self._cuts:
            text = self.texts.text(self._scripts[recording][:at])
            if not text.replace(self.think.open, "").strip():
                raise ThriftyError(f"the thinking is closed before it begins, but {self._only}")
            candidate = next(filter(None, map(extract_candidates, reversed(text.split("\n")))), None)
            answer = f"\\boxed{{{candidate}}}" if candidate else ""
            self._cuts[recording, at] = len(self._scripts)
            self._scripts.append([*self._closer, *self.encode(answer), END])
        return self._cuts[recording, at]


def load_replay(path: str, think: ThinkFormat | None = None) -> ReplayModel:
    """Load the model ``replay:FILE``.

    Args:
        path: of the file.
        think: the think format of the recordings; None to detect it.

    Raises:
        ThriftyError: the file cannot be read or a line is no recording.
    """
    return ReplayModel(read_recordings(path), f"replay:{path}", think)
