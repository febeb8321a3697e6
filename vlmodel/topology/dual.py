"""Dual encoder: the streams are encoded separately and combined only in the fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from vlmodel import parts
from vlmodel.tokens import FusedStream, Rows, Streams


class Config(parts.TopologyPart):
    """Settings of the dual encoder; it has none of its own."""

    reads_tokens: ClassVar[bool] = False

    kind: Literal["dual"] = "dual"

    def build(self, fusion: parts.Fusion, widths: Mapping[str, int]) -> DualEncoder:
        return DualEncoder(fusion)


class DualEncoder(parts.Topology):
    """Adapts each encoded stream to the fusion's width, then repeats a shared stream for each of its texts."""

    def forward(
        self, streams: Streams, rows: Rows, *, pooled_only: bool = False, output_attention: bool = False
    ) -> FusedStream:
        adapted = {name: self.fusion.adapt_stream(name, tokens) for name, tokens in streams.items()}
        for name, index_N in rows.items():
            adapted[name] = adapted[name].select_rows(index_N)
        fused: FusedStream = self.fusion(adapted, pooled_only=pooled_only, output_attention=output_attention)
        return fused
