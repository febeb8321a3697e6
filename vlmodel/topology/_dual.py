"""The module of ``dual``."""

from __future__ import annotations

from vlmodel import parts
from vlmodel.tokens import FusedStream, Rows, Streams


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
