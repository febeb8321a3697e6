"""Transformer fusion (the default): self-attention over the concatenated tokens of all streams, then pooling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vlmodel.layer_settings import AttentionSettings
from vlmodel.part_configs import FusionPart

if TYPE_CHECKING:
    from vlmodel.fusion._transformer import TransformerFusion


class Config(AttentionSettings, FusionPart):
    """Settings of the fusion by self-attention over the concatenated streams."""

    kind: Literal["transformer"] = "transformer"
    rounds: int = Field(2, ge=1)
    """Number of rounds."""
    pooling: Literal["cls", "mean", "attention"] = "cls"
    """The pooled vector: the first token of the language stream ([CLS]; the mean where a model has no such stream), the
    mean, or a learned mix of all tokens."""

    def build(self, widths: Mapping[str, int]) -> TransformerFusion:
        from vlmodel.fusion._transformer import TransformerFusion

        return TransformerFusion(self, widths)
