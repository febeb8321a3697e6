"""Settings that the encoders of sequences share."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from vlmodel.encoder_parts import ModalityPart
from vlmodel.locations import Location


class TransformerLayerSettings(ModalityPart):
    """Settings of the Transformer layers over the tokens of an input."""

    width: int = Field(128, ge=1)
    """Width of the layers."""
    depth: int = Field(2, ge=0)
    """Transformer layers."""
    heads: int = Field(4, ge=1)
    """Attention heads; they share the width evenly."""
    expansion: int = Field(4, ge=1)
    """Width of the feed-forward layers, in multiples of ``width``."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout after attention and within the feed-forward layers."""
    projection: int | None = Field(None, ge=1)
    """Width of a linear projection of the tokens; null for none."""

    @model_validator(mode="after")
    def _check_heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} cannot be shared by heads={self.heads}; make it a multiple")
        return self


class SequenceSettings(TransformerLayerSettings):
    """Settings of an encoder of which either everything is trained or nothing."""

    non_backbone_settings: ClassVar[frozenset[str]] = frozenset({"projection", "weights", "frozen"})

    weights: Location = ""
    """State dict (.safetensors) of an encoder of the same settings; "" from scratch."""
    frozen: bool = False
    """Do not train stem and layers (the projection is always trained); they then run without gradient."""

    def is_frozen(self) -> bool:
        return self.frozen
