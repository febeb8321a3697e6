"""Concatenation fusion: concatenates the pooled vectors of all streams and passes them through an MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from vlmodel.part_configs import FusionPart

if TYPE_CHECKING:
    from vlmodel.fusion._concat import ConcatFusion


class Config(FusionPart):
    """Settings of the fusion that concatenates pooled vectors and applies an MLP."""

    reads_tokens: ClassVar[bool] = False

    kind: Literal["concat"] = "concat"
    width: int = Field(256, ge=1)
    """Width of each adapted stream, of the hidden layer and of the result."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout after the hidden layer."""

    def build(self, widths: Mapping[str, int]) -> ConcatFusion:
        from vlmodel.fusion._concat import ConcatFusion

        return ConcatFusion(self, widths)
