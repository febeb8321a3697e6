"""Interactive fusion: the streams attend to each other by cross-attention, then their pooled vectors are projected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vlmodel.layer_settings import AttentionSettings
from vlmodel.part_configs import FusionPart

if TYPE_CHECKING:
    from vlmodel.fusion._interactive import InteractiveFusion


class Config(AttentionSettings, FusionPart):
    """Settings of the fusion in which each stream attends to all others."""

    kind: Literal["interactive"] = "interactive"
    rounds: int = Field(2, ge=1)
    """Number of rounds."""

    def build(self, widths: Mapping[str, int]) -> InteractiveFusion:
        from vlmodel.fusion._interactive import InteractiveFusion

        return InteractiveFusion(self, widths)
