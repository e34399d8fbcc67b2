"""Two models, one response: the second one lags behind rows, and reads what it has missed when it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import Keys, Sampler
from thrifty.decoding.session import Session
from thrifty.models.torch import TorchModel


@dataclass
class Share:
    """What one model did for a response.

    Attributes:
        written: tokens of the response that it wrote.
        read: tokens that it read and had not written itself, the prompt included.
        passes: of the model, in which the response took part.
        flops: floating-point operations, estimated from parameters and positions.
    """

    written: int = 0
    read: int = 0
    passes: int = 0
    flops: float = 0.0


@dataclass
class _Followed:
    """What a follower remembers of a row: its share, and by position the tokens that it wrote."""

    share: Share = field(default_factory=Share)
    wrote: dict[int, int] = field(default_factory=dict)


class Follower:
    """A model that reads what rows of another model write: late, and only when it is asked.

    What the asked rows have written since is read in one ragged pass for all of them; rows that are asked for the
    first time are read in one more. Rows that have stopped are dropped, and what a method has replaced in a row
    is forgotten. Each row bears what is read of it.

    Args:
        model: which follows; its tokens are those of the rows' own model.
    """

    def __init__(self, model: TorchModel) -> None:
        self.model = model
        self.session = Session(model)
        self.rows: list[Row] = []
        self._known: list[list[int]] = []

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row]) -> Tensor:
        """Return the raw logits over what follows all that each row has written ``(rows, vocab)``.

        Args:
            rows: which, each once.
        """
        self._drop([i for i, row in enumerate(self.rows) if row.stopped is not None])
        places = {id(row): i for i, row in enumerate(self.rows)}
        unread: list[list[int]] = [[] for _ in self.rows]
        entering = [row for row in rows if id(row) not in places]
        for row in rows:
            if id(row) in places:
                unread[places[id(row)]] = self._catch_up(places[id(row)], row)
        if any(unread):
            self.session.append(unread)
        if entering:
            whole = [[*row.prompt_ids, *row.ids] for row in entering]
            self.session.add(whole)
            for row, ids in zip(entering, whole, strict=True):
                places[id(row)] = len(self.rows)
                self.rows.append(row)
                self._known.append(ids)
                self._charge(row, 0)
        return self.session.logits[[places[id(row)] for row in rows]]

    def wrote(self, row: Row) -> None:
        """Note that a row's newest token is the follower's."""
        followed = self._followed(row)
        followed.share.written += 1
        followed.wrote[len(row.prompt_ids) + len(row.ids) - 1] = row.ids[-1]

    def share(self, row: Row) -> Share:
        """Return what the follower did for a row."""
        return self._followed(row).share

    def _followed(self, row: Row) -> _Followed:
        followed: _Followed = row.state.setdefault(self, _Followed())
        return followed

    def _catch_up(self, place: int, row: Row) -> list[int]:
        """Forget what no longer stands in a row; return what is to be read of it."""
        whole, known = [*row.prompt_ids, *row.ids], self._known[place]
        common = len(known)
        if whole[:common] != known:
            same = (i for i, (a, b) in enumerate(zip(whole, known, strict=False)) if a != b)
            # logits come from reading: behind a text that only became shorter, its last token is read again
            common = min(next(same, len(whole)), len(whole) - 1)
            self.session.rewind(place, len(known) - common)
            wrote = self._followed(row).wrote
            for i in range(common, len(known)):  # what is read again is charged, whoever wrote it
                wrote.pop(i, None)
        self._known[place] = whole
        if common < len(whole):
            self._charge(row, common)
        return whole[common:]

    def _charge(self, row: Row, known: int) -> None:
        """Charge a row with the reading of what stands behind its first ``known`` tokens."""
        followed, whole = self._followed(row), [*row.prompt_ids, *row.ids]
        followed.share.passes += 1
        followed.share.flops += self.model.flops(len(whole) - known, known)
        followed.share.read += sum(followed.wrote.get(i) != whole[i] for i in range(known, len(whole)))

    def _drop(self, places: Sequence[int]) -> None:
        if places:
            order = self.session.drop(places)
            self.rows = [self.rows[i] for i in order]
            self._known = [self._known[i] for i in order]


@dataclass
class Turns:
    """What a handover remembers of a row.

    Attributes:
        led: whether the follower writes the next token.
        own: tokens that the row's own model wrote.
    """

    led: bool = False
    own: int = 0


class Handover(Controller):
    """Let a second model write some of the tokens of rows that another model decodes.

    Before each token, `leads` says for which rows the follower writes it. It is drawn from the follower's distribution
    by the row's settings and random stream, so that a row which the follower writes alone is what it writes by itself.
    Tokens that a method forces are nobody's. The handover stands before controllers that steer: these are shown the
    distribution of the model that writes.

    Args:
        model: the rows' own.
        follower: the other one, with the same tokens.
    """

    def __init__(self, model: TorchModel, follower: TorchModel) -> None:
        self.model = model
        self.follower = Follower(follower)

    def turns(self) -> Turns:
        """Return what is to be remembered of a new row."""
        return Turns()

    def leads(self, rows: Sequence[Row], logits: Tensor) -> Sequence[bool]:
        """Say for each row whether the follower writes the next token.

        Args:
            rows: whose next token is free.
            logits: of their own model, raw ``(rows, vocab)``.
        """
        raise NotImplementedError

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.state[self] = self.turns()

    def adjust_logits(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        free = [i for i, row in enumerate(rows) if not row.forced]
        if not free:
            return logits
        asked = [rows[i] for i in free]
        leads = self.leads(asked, logits if len(free) == len(rows) else logits[free])
        for row, led in zip(asked, leads, strict=True):
            row.state[self].led = led
        led_places = [i for i, led in zip(free, leads, strict=True) if led]
        if not led_places:
            return logits
        found = self.follower.logits([rows[i] for i in led_places])
        if len(led_places) == len(rows):
            return found
        logits = logits.clone()
        logits[led_places] = found
        return logits

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if row.newest_kind == "injected":
                continue
            turns: Turns = row.state[self]
            if turns.led:
                self.follower.wrote(row)
            else:
                turns.own += 1

    def shares(self, row: Row) -> tuple[Share, Share]:
        """Return what the row's own model and the follower did for a finished row.

        The own model has written or read every token of the response, whoever wrote it.
        """
        usage, own = row.usage, row.state[self].own
        read = usage.prompt + usage.generated + usage.reread + usage.latent_steps - own
        return Share(own, read, usage.forward_passes, usage.flops), self.follower.share(row)


def choices(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """Return what rows would choose from raw logits, int64 ``(rows,)``, as the decode loop would.

    Args:
        rows: whose settings and random streams count.
        logits: ``(rows, vocab)``, left as they are.
    """
    if all(row.settings.temperature == 0 for row in rows):
        return logits.argmax(-1)
    sampler = Sampler.of([row.settings for row in rows], logits.device)
    return sampler.choose(logits, *streams(rows))


def streams(rows: Sequence[Row]) -> tuple[Keys, Keys]:
    """Return the keys of rows' random streams, and how many tokens each has written, uint64 ``(rows,)``."""
    return np.array([r.key for r in rows], dtype=np.uint64), np.array([len(r.ids) for r in rows], dtype=np.uint64)


def told(share: Share, model: TorchModel) -> dict[str, Any]:
    """Return what reports are told of a model's share: JSON values."""
    return {"model": model.name, "parameters": model.parameters, **asdict(share)}
