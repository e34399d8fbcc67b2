"""What a control method plugs into the decode loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from thrifty.decoding.draft import Draft
from thrifty.decoding.row import Row
from thrifty.decoding.session import Session
from thrifty.models.torch import TorchModel


class Batch(Protocol):
    """What controllers may ask of the batch that their rows are decoded in.

    Attributes:
        model: which decodes.
    """

    model: TorchModel

    def fork(self, rows: Sequence[Row], room: int) -> Session:
        """Return a session of copies of some rows, their newest tokens included.

        Args:
            rows: which.
            room: positions that the copies are expected to grow by.
        """
        ...

    def rewrite(
        self, row: Row, start: int, pieces: Sequence[tuple[str | Sequence[int], bool]], aside: bool = False
    ) -> None:
        """Replace a row's response from a token on, and read what replaces it; for `begin` and `after_token`.

        Args:
            row: whose.
            start: index of the first token to replace.
            pieces: what to put there: texts or token ids, and whether the method wrote them.
            aside: whether what the method wrote is an aside to the model: no part of the thinking or the answer,
                in which markers mean nothing.

        Raises:
            ValueError: no token would remain.
        """
        ...

    def logits(self, rows: Sequence[Row]) -> Tensor:
        """Return the raw logits that the newest tokens of some rows were chosen from ``(rows, vocab)``.

        For `after_token`, before the row is rewritten.
        """
        ...

    def feed(self, row: Row, vector: Tensor) -> None:
        """Give the model a vector instead of a row's newest token, which stays in the text; for `after_token`.

        Args:
            row: whose.
            vector: ``(hidden,)``, as the model's input embeddings.

        Raises:
            ValueError: the model did not write the token.
        """
        ...


class Controller:
    """Steer rows while they are decoded. Override only the hooks that are needed: the others cost nothing.

    A controller serves many rows at once and keeps what it remembers of a row in ``row.state[self]``.
    Rows of one batch may have different controllers; every hook gets only the rows that have this one.

    Attributes:
        taps: layers whose hidden states `see_hidden` gets: 0 for the embeddings, and so on.
    """

    taps: Sequence[int] = ()

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        """See rows that enter, their prompts read: force tokens, close the thinking, set up state."""

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        """Return the logits to choose the next tokens from.

        Args:
            rows: whose turn it is.
            logits: the model's raw logits ``(rows, vocab)``, or what an earlier controller made of them;
                not to be changed in place.
        """
        return logits

    def next_input(self, rows: Sequence[Row], tokens: list[int]) -> None:
        """See the chosen tokens before they are written; replace any in ``tokens``."""

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        """See each row's newest token: force more, close the thinking, probe, or stop the row."""

    def see_hidden(self, rows: Sequence[Row], hidden: Mapping[int, Tensor]) -> None:
        """See the states of the tapped layers at each row's newest position, the prompt's end first.

        Args:
            rows: that were moved on.
            hidden: layer to ``(rows, hidden)``, in the model's dtype.
        """


class Drafter(Protocol):
    """Guesses what rows will write. Whatever it guesses, they write what they would have written."""

    def propose(self, rows: Sequence[Row]) -> list[Draft]:
        """Return a draft for each row, empty for none; its newest token is chosen, but not yet read by the model."""
        ...

    def observe(self, rows: Sequence[Row], written: Sequence[int], probabilities: Tensor) -> None:
        """See what rows choose their next tokens from.

        Args:
            rows: which; one may come several times.
            written: tokens that each has written before the choice. By now there may be more.
            probabilities: after the controllers, temperature and filters; greedy rows' at temperature 1
                ``(rows, vocab)``.
        """
        ...

    def accepted(self, row: Row, drafted: int, accepted: int) -> None:
        """See what became of a draft.

        Args:
            row: whose.
            drafted: nodes.
            accepted: tokens of it that the row went on to write.
        """
        ...


def overrides(controller: Controller, hook: str) -> bool:
    """Tell whether a controller has a hook of its own."""
    return getattr(type(controller), hook) is not getattr(Controller, hook)
