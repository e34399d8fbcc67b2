"""FoReaL-Decoding: a strong model opens the sentences, a weak one finishes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.follower import Handover, Share, Turns, choices
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import uniforms
from thrifty.decoding.teacher_forcing import predictions
from thrifty.errors import ThriftyError
from thrifty.methods.shared.two_models import TwoModelMethod
from thrifty.models.torch import TorchModel
from thrifty.traces.segments import sentences, spans_to_tokens
from thrifty.traces.trace import Phase

STREAM = 13
"""Of the random numbers that decide which sentences are led."""


@dataclass(frozen=True, kw_only=True)
class FoReaL(TwoModelMethod):
    """Let the main model lead: it writes the first tokens of a sentence, and a small model finishes it.

    The two disagree where sentences begin ("Wait", "Perhaps"); within them, the small one follows. Before each sentence
    a coin that falls for the leader with probability ``p`` decides whether it is led at all. Nothing is verified.
    With ``p=0`` the small model writes alone, with ``p=1`` and ``n`` at ``cap`` or above the main model does.

    A sentence ends with a line, or with a full stop, question or exclamation mark that a blank follows, where what the
    small model would write next tells whether one does; decimals, list numbers and abbreviations end none. So it does
    with the thinking, and after ``cap`` tokens.

    The account is that of vanilla on the small model, which reads or writes every token, and on top of it, as
    ``helper``, what the main model reads and writes; forward passes are the main model's. ``events["foreal"]`` tells
    the sentences, how many were led, the share of tokens that the leader wrote, what each model did, and the
    ``theoretical_flops`` (two a parameter and token of the response) in both conventions: ``decode_only``, each token
    charged to who wrote it, and ``full``, with what each model read that it had not written, the prompt left out; and
    what the leader alone would cost, ``leader_only``. For a leader of 32, a draft of 1.5 and 8 led of 13 tokens they
    are 527, 871 and 832.

    Source: What makes Reasoning Models Different? Follow the Reasoning Leader for Efficient Decoding,
    arXiv 2506.06998; card ``foreal``. Follows the paper; no code was found. Reconstruction: the rule for the ends of
    sentences, the cap, both conventions for operations, and the answer being led like the thinking. The sampling values
    are NOT FOUND and those of the run hold; a further setting k is NOT FOUND and left out.

    Attributes:
        small: name or folder of the model that finishes the sentences; its tokenizer must be the main model's.
        n: tokens at the beginning of a led sentence that the main model writes.
        p: probability that a sentence is led.
        cap: tokens after which a sentence counts as ended, so that the leader gets its turn again.
        lead_answer: whether what follows the thinking is led too; else the small model writes it.
    """

    slug: ClassVar[str] = "foreal"
    needs: ClassVar[Need] = Need.SAMPLING
    thinks: ClassVar[bool] = False
    n: int = 15
    p: float = 1.0
    cap: int = 128
    lead_answer: bool = True

    def __post_init__(self) -> None:
        if self.n < 0 or self.cap < 1:
            raise ThriftyError("foreal: n must be at least 0, cap at least 1")
        if not 0 <= self.p <= 1:
            raise ThriftyError("foreal: p is a probability: give one from 0 to 1")

    def handover(self, small: TorchModel, large: TorchModel) -> Handover:
        return SentenceGate(small, large, self)

    def events(self, row: Row, handover: Handover) -> dict[str, Any]:
        draft, leader = handover.shares(row)
        sentence: _Sentence = row.state[handover]
        prompt, written = len(row.prompt_ids), draft.written + leader.written
        flops = theoretical_flops(
            Share(leader.written, max(leader.read - prompt, 0)),  # who was never asked has not read the prompt
            Share(draft.written, draft.read - prompt),
            handover.follower.model.parameters,
            handover.model.parameters,
        )
        return {
            "sentences": sentence.number,
            "led_sentences": sentence.gates_open,
            "lead_share": round(leader.written / written, 4) if written else None,
            "theoretical_flops": flops,
        }


def theoretical_flops(
    leader: Share, draft: Share, leader_parameters: float, draft_parameters: float
) -> dict[str, float]:
    """Return what a response costs at two operations a parameter and token, in both conventions; see `FoReaL`.

    Args:
        leader: tokens of the response that the leader wrote, and others of it that it read.
        draft: likewise.
        leader_parameters: of the leader, in any unit.
        draft_parameters: of the draft, in the same unit.

    Returns:
        ``decode_only``, ``full``, and ``leader_only``, had the leader written everything.
    """
    decode_only = 2 * (leader.written * leader_parameters + draft.written * draft_parameters)
    return {
        "decode_only": decode_only,
        "full": decode_only + 2 * (leader.read * leader_parameters + draft.read * draft_parameters),
        "leader_only": 2 * (leader.written + draft.written) * leader_parameters,
    }


@dataclass
class _Sentence(Turns):
    """The sentence that a row is in: where it begins, its number from 1, and whether it is led."""

    start: int = 0
    number: int = 0
    open: bool = False
    phase: Phase | None = None
    gates_open: int = 0


class SentenceGate(Handover):
    """Give the follower the beginnings of sentences.

    Args:
        model: which finishes sentences.
        leader: which begins them.
        options: the method's.
    """

    def __init__(self, model: TorchModel, leader: TorchModel, options: FoReaL) -> None:
        super().__init__(model, leader)
        self.options = options

    def turns(self) -> _Sentence:
        return _Sentence()

    def leads(self, rows: Sequence[Row], logits: Tensor) -> list[bool]:
        next_texts = [self.model.texts.text([token]) for token in choices(rows, logits).tolist()]
        beginning = [row for row, text in zip(rows, next_texts, strict=True) if self._ended(row, text)]
        if beginning:
            numbers = [row.state[self].number for row in beginning]
            keys, counters = (np.array(x, dtype=np.uint64) for x in ([row.key for row in beginning], numbers))
            for row, draw in zip(beginning, uniforms(keys, counters, STREAM).tolist(), strict=True):
                self._begin_sentence(row, draw < self.options.p)
        return [self._leads(row) for row in rows]

    def _ended(self, row: Row, next_text: str) -> bool:
        """Tell whether a new sentence begins with the row's next token."""
        sentence: _Sentence = row.state[self]
        written = len(row.ids) - sentence.start
        if row.phase != sentence.phase or written >= self.options.cap or written < 0:  # a method may have cut the row
            return True
        return ends_sentence(row.text(sentence.start), next_text)

    def _begin_sentence(self, row: Row, led: bool) -> None:
        sentence: _Sentence = row.state[self]
        sentence.start, sentence.phase = len(row.ids), row.phase
        sentence.open = led and (self.options.lead_answer or row.phase == "thinking")
        sentence.number += 1
        sentence.gates_open += sentence.open

    def _leads(self, row: Row) -> bool:
        sentence: _Sentence = row.state[self]
        return sentence.open and len(row.ids) - sentence.start < self.options.n


def ends_sentence(text: str, following: str) -> bool:
    r"""Tell whether a sentence has come to its end.

    ``It is 5.`` has before `` So``, and not before ``14`` nor before ``\n``, which ends it in its turn.

    Args:
        text: of the sentence so far; blanks before its first word are part of it.
        following: what would be written next.
    """
    body = text.lstrip()
    if not body:
        return False
    if "\n" in body:
        return True
    whole = body + following
    cut = sentences(whole)[0].end
    return cut < len(whole) and cut <= len(whole) - len(following.lstrip())


@dataclass(frozen=True)
class Misalignment:
    """How often two models would have written different tokens along one path (the paper's two curves).

    Attributes:
        rate: share of all tokens.
        by_position: of the tokens of each bucket of positions, in order.
        by_index: of the first, second, ... tokens of sentences.
        tokens: how often each token was one on which they differ.
    """

    rate: float
    by_position: list[float]
    by_index: list[float]
    tokens: Counter[int]


def misalignment(
    leader: TorchModel, draft: TorchModel, responses: Sequence[tuple[Sequence[int], Sequence[int]]], bucket: int = 64
) -> Misalignment:
    """Compare what two models find likeliest at each token of responses.

    Args:
        leader: which wrote them, greedily.
        draft: the other one, with the same tokens.
        responses: token ids of prompts and responses, one token at least each.
        bucket: positions that share a place in the curve over the whole response.

    Raises:
        ThriftyError: there is no response.
    """
    flags, indices = list[list[bool]](), list[list[int]]()
    for prompt_ids, ids in responses:
        best = [
            list(chain.from_iterable(logits.argmax(-1).tolist() for logits, _ in predictions(model, prompt_ids, ids)))
            for model in (leader, draft)
        ]
        flags.append([a != b for a, b in zip(*best, strict=True)])
        indices.append(sentence_indices(leader, ids))
    if not flags:
        raise ThriftyError("misalignment: there is no response to compare models on: give one at least")
    of_all = list(chain.from_iterable(flags))
    of_leader = chain.from_iterable(ids for _, ids in responses)
    different = (token for token, off in zip(of_leader, of_all, strict=True) if off)
    positions = ((i // bucket, off) for row in flags for i, off in enumerate(row))
    return Misalignment(
        sum(of_all) / len(of_all),
        _rates(positions),
        _rates(zip(chain.from_iterable(indices), of_all, strict=True)),
        Counter(different),
    )


def sentence_indices(model: TorchModel, ids: Sequence[int]) -> list[int]:
    """Return each token's place in its sentence, from 0."""
    lengths = [len(model.texts.text([token])) for token in ids]
    text = "".join(model.texts.text([token]) for token in ids)
    return [i for first, last in spans_to_tokens(sentences(text), lengths) for i in range(last - first)]


def _rates(flags: Iterable[tuple[int, bool]]) -> list[float]:
    """Return the share of flagged items at each place, 0 where there is none, from pairs of place and flag."""
    total, flagged = Counter[int](), Counter[int]()
    for place, flag in flags:
        total[place] += 1
        flagged[place] += flag
    return [flagged[i] / total[i] if total[i] else 0.0 for i in range(max(total) + 1)]
