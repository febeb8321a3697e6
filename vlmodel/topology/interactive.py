"""Interactive streams: after their encoders, each stream passes layers in which it also attends to all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vlmodel.layer_settings import AttentionSettings
from vlmodel.part_configs import TopologyPart

if TYPE_CHECKING:
    from vlmodel import parts
    from vlmodel.topology._interactive import InteractiveEncoder


class Config(AttentionSettings, TopologyPart):
    """Settings of layers of self-attention, cross-attention to the other streams and feed-forward, before the
    fusion.
    """

    kind: Literal["interactive"] = "interactive"
    depth: int = Field(2, ge=1)
    """Number of layers."""

    def fusion_widths(self, widths: Mapping[str, int]) -> Mapping[str, int]:
        return dict.fromkeys(widths, self.width)

    def build(self, fusion: parts.Fusion, widths: Mapping[str, int]) -> InteractiveEncoder:
        from vlmodel.topology._interactive import InteractiveEncoder

        return InteractiveEncoder(self, fusion, widths)
