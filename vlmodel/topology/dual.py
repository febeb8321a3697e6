"""Dual encoder: the streams are encoded separately and combined only in the fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from vlmodel.part_configs import TopologyPart

if TYPE_CHECKING:
    from vlmodel import parts
    from vlmodel.topology._dual import DualEncoder


class Config(TopologyPart):
    """Settings of the dual encoder; it has none of its own."""

    reads_tokens: ClassVar[bool] = False

    kind: Literal["dual"] = "dual"

    def build(self, fusion: parts.Fusion, widths: Mapping[str, int]) -> DualEncoder:
        from vlmodel.topology._dual import DualEncoder

        return DualEncoder(fusion)
