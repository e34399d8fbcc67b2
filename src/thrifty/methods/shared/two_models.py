"""What methods have in common in which a small and a large model write one response by turns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from thrifty.decoding.controller import Controller
from thrifty.decoding.flow import Flow, conclude
from thrifty.decoding.follower import Handover, told
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import FlowMethod, Method, Stage
from thrifty.methods.shared.helpers import helper_model
from thrifty.models.base import Job, Model
from thrifty.models.torch import TorchModel

_STAGES: WeakKeyDictionary[Handover, Stage] = WeakKeyDictionary()
"""Where the rows of a handover play: one stage for all of them, whose controllers they share."""


@dataclass(frozen=True, kw_only=True)
class TwoModelMethod(FlowMethod):
    """Decode with the small model, and let the main, large one write some of the tokens.

    The account is that of vanilla on the small model, which reads or writes every token, and on top of it, as
    ``helper``, what the large one reads and writes. Operations are those of both models, forward passes those of the
    large one. ``events`` hold the share of each.

    Attributes:
        small: name or folder of the small model, which must have the main model's tokenizer.
    """

    streams: ClassVar[bool] = True
    small: str = "pebble-small"

    def handover(self, small: TorchModel, large: TorchModel) -> Handover:
        """Return what decides who writes the next token of a row; a fresh one."""
        raise NotImplementedError

    def events(self, row: Row, handover: Handover) -> dict[str, Any]:
        """Return what reports are told of a finished row beside the models' shares."""
        raise NotImplementedError

    def small_model(self, large: TorchModel) -> TorchModel:
        """Return the small model as it stands in for the large one: its prompts, think markers and ends are the same.

        Raises:
            ThriftyError: there is no such model, or its tokens are not those of the large one.
        """
        small = helper_model(self.small, large)
        small.require(self.needs, self.spec)
        vocabularies = [getattr(m, "tokenizer", None) and m.tokenizer.get_vocab() for m in (small, large)]
        if not vocabularies[0] or vocabularies[0] != vocabularies[1] or small.vocabulary_size != large.vocabulary_size:
            raise ThriftyError(
                f"{self.slug}: {small.name!r} and {large.name!r} do not have the same tokenizer, so that one cannot go "
                f"on from the other's tokens: name a smaller model of the same family, as {self.slug}(small=FOLDER)"
            )
        standing_in = TorchModel(small.network, large.tokenizer, small.name, large.think)
        standing_in.eos_ids = small.eos_ids | large.eos_ids
        standing_in.context_length = min(small.context_length, large.context_length)
        return standing_in

    def check(self, model: Model) -> None:
        super().check(model)
        assert isinstance(model, TorchModel)
        self.small_model(model)

    def controllers(self, model: TorchModel) -> list[Controller]:
        return [self.handover(self.small_model(model), model)]

    def _check_steering(self, part: Method, small: TorchModel) -> None:
        """Refuse a steering method that would do nothing, or read the small model by what it knows of the large one."""
        part.check(small)
        if type(part).attention is not Method.attention:
            raise ThriftyError(
                f"{self.slug!r} writes with two models, and {part.slug!r} thins the cache of one that writes alone: "
                "run them one at a time"
            )

    def flow(self, stage: Stage, job: Job) -> Flow:
        handover = stage.own[0]
        assert isinstance(handover, Handover)
        if handover not in _STAGES:
            for part in stage.parts:
                self._check_steering(part, handover.model)
            _STAGES[handover] = replace(stage, model=handover.model)
        playing = _STAGES[handover]
        (row,) = yield [playing.call(playing.render(job), controllers=[handover], model=handover.model)]
        small, large = handover.shares(row)
        models = {"small": told(small, handover.model), "large": told(large, handover.follower.model)}
        trace = conclude(row, stage.method, events={self.slug: {**self.events(row, handover), **models}})
        trace.usage.helper += large.read + large.written
        trace.usage.flops += large.flops
        trace.usage.forward_passes = large.passes
        return trace
