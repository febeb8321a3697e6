"""Dual encoder: the streams are encoded apart and meet in the fusion only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from vlmodel import parts
from vlmodel.tokens import Fused, Tokens


class Config(parts.TopologyPart):
    """Encoded apart, fused late; it has no settings of its own."""

    reads_tokens: ClassVar[bool] = False

    kind: Literal["dual"] = "dual"

    def build(self, fusion: parts.Fusion, widths: Mapping[str, int]) -> DualEncoder:
        return DualEncoder(fusion)


class DualEncoder(parts.Topology):
    """Adapts each stream as it was encoded, and only then repeats a shared one for each of its texts."""

    def __init__(self, fusion: parts.Fusion) -> None:
        super().__init__()
        self.fusion, self.width = fusion, fusion.width

    def forward(
        self,
        streams: Mapping[str, Tokens],
        rows: Mapping[str, Tensor],
        *,
        pooled_only: bool = False,
        output_attention: bool = False,
    ) -> Fused:
        adapted = {name: self.fusion.adapt(name, tokens) for name, tokens in streams.items()}
        for name, index_N in rows.items():
            adapted[name] = adapted[name].select(index_N)
        fused: Fused = self.fusion(adapted, pooled_only=pooled_only, output_attention=output_attention)
        return fused
