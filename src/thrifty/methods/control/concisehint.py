"""ConciseHint: keep telling the model to be concise, inside the reasoning that it has just written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from thrifty.catalogue import Need
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import Method
from thrifty.models.base import Job
from thrifty.models.torch import TorchModel

ADAP = "Match the length of your answer to how complex the question is; keep it brief when it is simple."
_MARK = "\ue000"
"""A character that no chat template writes of itself."""


def interval(length: int, alpha: int, beta: float, cap: int) -> int:
    """Return the tokens to generate before the next hint: min(cap, int(alpha + beta * length)).

    With 128, 0.2 and 1024, a length of 128 gives 153, 4107 gives 949, and from 4480 on it is 1024.

    Args:
        length: so far, in tokens.
        alpha: tokens at length 0.
        beta: growth.
        cap: the most.
    """
    return min(cap, int(alpha + beta * length))


def position(text: str, tau: int) -> int | None:
    """Return the index of the punctuation mark behind which the hint goes, None if there is none.

    It is the first full stop or comma followed by a blank from ``ratio * (characters - 1)`` on, where
    ``ratio = min(max(tau - 128, 0) / 1024, 0.8)``. In "Ab, cd. Ef" that is 2 for 128 tokens and 6 for 640.

    Args:
        text: of the chunk.
        tau: tokens that the chunk was to have.
    """
    ratio = min(max(tau - 128, 0) / 1024, 0.8)
    start = int(ratio * (len(text) - 1))
    return next((i for i in range(start, len(text) - 1) if text[i] in ".," and text[i + 1] == " "), None)


def user_turn(model: TorchModel) -> tuple[str, str]:
    """Return what a model's chat template writes around a user's message, without blank ends of lines.

    Args:
        model: one without a template has no such marks.

    Raises:
        ThriftyError: the template renders no conversation of three turns.
    """
    if not model.template:
        return "", ""
    from jinja2 import TemplateError

    turns = [{"role": role, "content": _MARK} for role in ("user", "assistant", "user")]
    try:
        text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        first, _, second, end = (model.encode(part) for part in text.split(_MARK))
    except (TemplateError, ValueError) as error:
        raise ThriftyError(
            f"the chat template of {model.name!r} does not render a second question ({error}): give concisehint a hint "
            "with the marks in it, and markers=false"
        ) from error
    # what stands before the first question and before a later one: the mark itself, behind all that differs
    shared = 0
    while shared < min(len(first), len(second)) and first[-shared - 1] == second[-shared - 1]:
        shared += 1
    begin, ending = model.texts.text(second[len(second) - shared :]), model.texts.text(end)
    return begin.removeprefix(ending), ending.rstrip("\n")


@dataclass(frozen=True, slots=True)
class _Chunk:
    start: int  # where it begins, in tokens
    tau: int  # tokens that it is to have
    written: int  # tokens before it, without hints


class _Hint(Controller):
    def __init__(self, method: ConciseHint, model: TorchModel) -> None:
        self.method = method
        begin, end = user_turn(model) if method.markers else ("", "")
        self.hint = model.encode(f"-{begin}{method.hint}{end}-" if method.markers else method.hint)

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.state[self] = _Chunk(len(row.ids), self.method.alpha, len(row.ids) - len(row.asides))
            row.events["concisehint"] = []

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        method = self.method
        for row in rows:
            chunk: _Chunk = row.state[self]
            ending = row.stopped or row.ids[-1] in row.model.eos_ids
            if len(row.ids) - chunk.start < chunk.tau or row.forced or ending:
                continue
            if row.phases.closed and not method.after_thinking:
                continue
            written = chunk.written + len(row.ids) - chunk.start
            self._insert(row, batch, chunk.start, chunk.tau)
            length = written if method.count == "paper" else len(row.prompt_ids) + len(row.ids)
            row.state[self] = _Chunk(len(row.ids), interval(length, method.alpha, method.beta, method.cap), written)

    def _insert(self, row: Row, batch: Batch, start: int, tau: int) -> None:
        """Write the hint into the chunk that begins at a token, if it has a place and the response has room."""
        spelled = [row.model.texts.bytes_of(token) for token in row.ids[start:]]
        # broken characters at either end of the chunk keep their bytes, so that characters lead back to tokens
        text = b"".join(spelled).decode(errors="surrogateescape")
        found = position(text, tau)
        if found is None or not self._fits(row):
            return
        left = len(text[: found + 1].encode(errors="surrogateescape"))
        token = start
        while left >= len(spelled[token - start]):
            left -= len(spelled[token - start])
            token += 1
        pieces: list[tuple[str | Sequence[int], bool]] = [(self.hint, True), (row.ids[token:], False)]
        if left:  # the mark and the blank are one token
            split = spelled[token - start]
            pieces = [
                (split[:left].decode(errors="replace"), False),
                (self.hint, True),
                (split[left:].decode(errors="replace"), False),
                (row.ids[token + 1 :], False),
            ]
        batch.rewrite(row, token, pieces, aside=True)
        row.events["concisehint"].append([token, tau])

    def _fits(self, row: Row) -> bool:
        """Tell whether a hint leaves the room that closing the thinking and answering take."""
        room = min(row.settings.max_tokens, row.model.context_length - len(row.prompt_ids))
        reserve = min(row.settings.reserve, room // 2) if row.thinking else 0
        return len(row.ids) + len(self.hint) + 1 + reserve + row.model.close_length < room


@dataclass(frozen=True, kw_only=True)
class ConciseHint(Method):
    """Insert "make answer concise!" into the reasoning every tau tokens, where tau grows with the length.

    When a chunk of tau tokens is written, the hint goes in behind a full stop or comma of it (`position`), the
    model reads what follows the hint again, and writes on. The next tau is min(cap, alpha + beta * length)
    (`interval`): what has become long is hard, and is pressed less. Hints are asides: they count as tokens, but
    neither as thinking nor as the answer. A chunk without such a mark gets none, nor does one that leaves no room.

    Source: ConciseHint: Boosting Efficient Reasoning via Continuous Concise Hints during Generation,
    arXiv 2506.18810; card ``concisehint``. Follows the release, with two differences: lengths are counted by the
    model's own tokenizer, and the turn marks are those of the model's own chat template. The wording of the AdaP
    sentence is ours, and so is ``after_thinking=false``. Its trained variant, ConciseHint-T, is not here.

    Attributes:
        alpha: tokens before the first hint.
        beta: growth of the interval with the length; 0 for a fixed interval.
        cap: the longest interval.
        hint: what to say, empty for nothing.
        markers: whether to put the hint into a user's turn between hyphens, as the authors do.
        count: what the length counts: all that the model reads, prompt and hints included (``release``), or the
            response without hints (``paper``).
        after_thinking: whether to go on in the answer, as the release does.
        adap: whether to ask in the question, too, for a length that suits it (AdaP).
    """

    slug: ClassVar[str] = "concisehint"
    needs: ClassVar[Need] = Need.SAMPLING
    alpha: int = 128
    beta: float = 0.2
    cap: int = 1024
    hint: str = "make answer concise!"
    markers: bool = True
    count: str = "release"
    after_thinking: bool = True
    adap: bool = False

    def __post_init__(self) -> None:
        if self.alpha < 1 or not 0 <= self.beta < math.inf or self.cap < 1:
            raise ThriftyError("concisehint: alpha and cap must be at least 1, beta at least 0 and finite")
        if self.count not in ("release", "paper"):
            raise ThriftyError(f"concisehint: count must be release or paper, not {self.count!r}")

    def prompt(self, model: TorchModel, job: Job, prompt: str) -> str:
        if not self.adap:
            return prompt
        question = job.problem.question.strip()
        before, found, behind = prompt.rpartition(question)
        if not found:
            raise ThriftyError(
                f"concisehint: the prompt of problem {job.problem.id!r} does not hold its question, so that adap has "
                "no place: leave it out, or leave out the method that rewrites prompts"
            )
        return f"{before}{question}\n{ADAP}{behind}"

    def controllers(self, model: TorchModel) -> list[Controller]:
        return [_Hint(self, model)] if self.hint else []
