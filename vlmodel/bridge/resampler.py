"""A bridge that turns a stream into a fixed number of tokens by learned queries (Perceiver Resampler of Flamingo,
Alayrac et al. 2022, arXiv:2204.14198).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from vlmodel.text_head import BridgePart

if TYPE_CHECKING:
    from vlmodel.bridge._resampler import Resampler


class Config(BridgePart):
    """Settings of a bridge that turns a stream of any length into ``tokens`` tokens of the language model."""

    kind: Literal["resampler"] = "resampler"
    tokens: int = Field(16, ge=1)
    """How many tokens a stream becomes."""
    width: int = Field(256, ge=1)
    """Width of the layers."""
    depth: int = Field(2, ge=1)
    """Rounds of attention to the stream."""
    heads: int = Field(4, ge=1)
    """Attention heads; they share the width evenly."""
    expansion: int = Field(4, ge=1)
    """Width of the feed-forward layers, in multiples of ``width``."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout after attention and within the feed-forward layers."""

    @model_validator(mode="after")
    def _check_heads_divide_width(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} cannot be shared by heads={self.heads}; make it a multiple")
        return self

    def build(self, width: int, out_width: int) -> Resampler:
        from vlmodel.bridge._resampler import Resampler

        return Resampler(self, width, out_width)
