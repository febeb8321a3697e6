"""Gated fusion: sums the pooled vectors of the streams, weighted by gates that depend on all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from vlmodel.part_configs import FusionPart

if TYPE_CHECKING:
    from vlmodel.fusion._gated import GatedFusion


class Config(FusionPart):
    """Settings of the fusion that mixes pooled vectors by gates."""

    reads_tokens: ClassVar[bool] = False

    kind: Literal["gated"] = "gated"
    width: int = Field(256, ge=1)
    """Width of each adapted stream and of the result."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of the mixed vector."""

    def build(self, widths: Mapping[str, int]) -> GatedFusion:
        from vlmodel.fusion._gated import GatedFusion

        return GatedFusion(self, widths)
