"""Settings that several parts share, and their checks. torch is not imported here: reading settings needs none."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from vlmodel.config import ConfigSection


class AttentionSettings(ConfigSection):
    """The settings of parts that consist of attention layers."""

    width: int = Field(256, ge=1)
    """Width of the layers, to which linear adapters bring each stream."""
    heads: int = Field(4, ge=1)
    """Attention heads; they share the width evenly."""
    expansion: int = Field(4, ge=1)
    """Width of the feed-forward layers, in multiples of ``width``."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout after attention and within the feed-forward layers."""

    @model_validator(mode="after")
    def _check_heads_divide_width(self) -> Self:
        check_heads_divide_width(self.width, self.heads)
        return self


def check_heads_divide_width(width: int, heads: int) -> None:
    """Raise ValueError if ``heads`` does not divide ``width``; for validators of settings."""
    if width % heads:
        raise ValueError(f"width={width} cannot be shared by heads={heads}; make it a multiple")


def check_activation_has_projection(activation: str, has_projection: bool) -> None:
    """Raise ValueError if there is an activation and no projection before it; for validators of settings."""
    if activation != "none" and not has_projection:
        raise ValueError(f"activation={activation!r} follows a projection, and there is none; set projection")
