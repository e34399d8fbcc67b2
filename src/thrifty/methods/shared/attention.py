"""What methods on the attention hook share: the check of the model, and a look at full attention for their tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.catalogue import Need
from thrifty.errors import ThriftyError
from thrifty.methods.base import Method
from thrifty.methods.control.vanilla import Vanilla
from thrifty.models.attention import AttentionPolicy, require_hook
from thrifty.models.base import Model
from thrifty.models.torch import TorchModel


@dataclass(frozen=True, kw_only=True)
class AttentionMethod(Method):
    """A method that decides what the model attends to and keeps.

    Its traces tell under its name: ``attended``, entries that the tokens of the response attended to, summed over
    layers (texts that are put in and probes not counted); ``full``, those that full attention would have; ``peak``
    and ``kept``, entries that each head of each layer held at most and in the end; ``evicted`` and ``evictions``,
    entries that went and how often some did; ``metadata``, numbers noted beside each entry. The FLOPs of the
    account are those of full attention.
    """

    needs: ClassVar[Need] = Need.KV
    thinks: ClassVar[bool] = False

    def check(self, model: Model) -> None:
        super().check(model)
        assert isinstance(model, TorchModel)
        require_hook(model, self.slug)


def check_eviction(slug: str, budget: float, window: int) -> None:
    """Refuse options of a method that evicts.

    Args:
        slug: of the method.
        budget: entries to keep, at most 1 for a share.
        window: steps between evictions, and newest entries that are always kept.

    Raises:
        ThriftyError: they are out of range.
    """
    if budget <= 0 or (budget > 1 and budget != int(budget)):
        raise ThriftyError(f"{slug}: budget is a share above 0 and up to 1, or a whole number of entries above 1")
    if window < 1:
        raise ThriftyError(f"{slug}: window must be at least 1")
    if 1 < budget <= window:
        raise ThriftyError(f"{slug}: a budget of {budget:g} entries must be above the window, {window}")


@dataclass(frozen=True, kw_only=True)
class Watched(Vanilla):
    """The model as it is, while a policy looks on.

    Attributes:
        policy: which changes nothing.
    """

    policy: AttentionPolicy | None = None

    def attention(self, model: TorchModel) -> AttentionPolicy | None:
        return self.policy
