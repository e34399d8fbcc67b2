"""The model as it is: what every method is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.catalogue import Need
from thrifty.methods.base import Method, TextSteering


@dataclass(frozen=True, kw_only=True)
class Vanilla(Method):
    """Decode plainly; only the limits of the run hold."""

    slug: ClassVar[str] = "vanilla"
    needs: ClassVar[Need] = Need.TEXT
    thinks: ClassVar[bool] = False

    def over_text(self) -> TextSteering:
        return TextSteering()
