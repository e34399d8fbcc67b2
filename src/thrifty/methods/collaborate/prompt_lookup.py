"""Prompt lookup: draft what followed the same words earlier in the prompt or the response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.controller import Drafter
from thrifty.decoding.draft import Draft
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import Method
from thrifty.models.torch import TorchModel


def continuation(ids: Sequence[int], first: dict[tuple[int, ...], int], known: int, longest: int) -> int | None:
    """Return where what follows the longest n-gram at the end of a text began when it first stood in it.

    Args:
        ids: the text.
        first: where each n-gram was first followed by a token, of those that end before `known`; brought up to date.
        known: tokens of the text whose n-grams it holds.
        longest: tokens of the longest n-gram.
    """
    for end in range(known, len(ids)):
        for n in range(1, min(longest, end) + 1):
            first.setdefault(tuple(ids[end - n : end]), end)
    for n in range(min(longest, len(ids)), 0, -1):
        start = first.get(tuple(ids[-n:]))
        if start is not None:
            return start
    return None


@dataclass(slots=True)
class _Text:
    """A row's text, and where its n-grams first stood."""

    ids: list[int]
    reread: int
    first: dict[tuple[int, ...], int] = field(default_factory=dict)
    known: int = 0


class PromptLookupDrafter:
    """Drafts a chain of what followed the end of a row's text before.

    Args:
        tokens: of a draft at the most.
        longest: tokens of the longest n-gram.
    """

    def __init__(self, tokens: int, longest: int) -> None:
        self.tokens, self.longest = tokens, longest

    def propose(self, rows: Sequence[Row]) -> list[Draft]:
        return [self._draft(row) for row in rows]

    def _draft(self, row: Row) -> Draft:
        text = row.state.get(self)
        if text is None or text.reread != row.usage.reread:  # a method that rewrites the past says so in the account
            text = row.state[self] = _Text(list(row.prompt_ids), row.usage.reread)
        text.ids += row.ids[len(text.ids) - len(row.prompt_ids) :]
        start = continuation(text.ids, text.first, text.known, self.longest)
        text.known = len(text.ids)
        return Draft.chain(text.ids[start : start + self.tokens] if start is not None else [])

    def observe(self, rows: Sequence[Row], written: Sequence[int], probabilities: Tensor) -> None:
        """See nothing: what counts is what was written."""

    def accepted(self, row: Row, drafted: int, accepted: int) -> None:
        """Do nothing: the account tells how many drafted tokens were read in vain."""


@dataclass(frozen=True, kw_only=True)
class PromptLookup(Method):
    """Write several tokens in a pass where the text repeats itself: what followed the same words before is drafted.

    The end of the prompt and response, its last 3 tokens, else 2, else 1, is looked for where it first stood, and the
    tokens behind it are read together with the newest one. The response is the same, token for token.

    Source: Prompt Lookup Decoding, A. Saxena 2023 (github.com/apoorvumang/prompt-lookup-decoding); no paper. Follows
    the release, except that a draft near the end of the text is shorter instead of none.

    Attributes:
        tokens: of a draft at the most, 0 for no drafts at all.
        longest: tokens of the longest n-gram that is looked for.
    """

    slug: ClassVar[str] = "prompt-lookup"
    needs: ClassVar[Need] = Need.LOGITS | Need.KV
    thinks: ClassVar[bool] = False
    tokens: int = 10
    longest: int = 3

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.longest < 1:
            raise ThriftyError("prompt-lookup: tokens must be at least 0, longest at least 1")

    def drafter(self, model: TorchModel) -> Drafter | None:
        return PromptLookupDrafter(self.tokens, self.longest) if self.tokens else None
