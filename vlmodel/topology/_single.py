"""The module of ``single``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.layers import TransformerLayer
from vlmodel.streams import StreamAdapters, pool_stream, prepend_attention, stream_spans
from vlmodel.tokens import FusedStream, Rows, Streams, Tokens

if TYPE_CHECKING:
    from vlmodel.topology.single import Config


class SingleEncoder(parts.Topology):
    """Applies ``depth`` pre-norm Transformer layers to the concatenation of all streams, and gives the fusion the
    separate parts.

    After VisualBERT (Li et al. 2019), UNITER (Chen et al. 2020) and ViLT (Kim et al. 2021). The bias of a stream's
    adapter is its modality embedding. A shared stream is adapted once, then repeated for each of its texts.

    The attention is that of the layers, followed by the fusion's own if it has the same joint sequence. With a fusion
    that keeps no sequence, the spans are those of the layers' sequence.
    """

    def __init__(self, config: Config, fusion: parts.Fusion, widths: Mapping[str, int]) -> None:
        super().__init__(fusion)
        self.adapters = StreamAdapters(widths, config.width)
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.expansion * config.width, config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self, streams: Streams, rows: Rows, *, pooled_only: bool = False, output_attention: bool = False
    ) -> FusedStream:
        adapted = {name: self.adapters.adapt_stream(name, tokens) for name, tokens in streams.items()}
        for name, index_N in rows.items():
            adapted[name] = adapted[name].select_rows(index_N)
        complete = self.adapters.add_missing_streams(adapted)
        x_BTD = torch.cat([tokens.x_BTD for tokens in complete.values()], dim=1)
        mask_BT = torch.cat([tokens.mask_BT for tokens in complete.values()], dim=1)
        attention: list[Tensor] = []
        for layer in self.layers:
            x_BTD, weights = layer(x_BTD, mask_BT, None, output_attention)
            if weights is not None:
                attention.append(weights)
        x_BTD = self.norm(x_BTD)
        spans = stream_spans({name: tokens.x_BTD for name, tokens in complete.items()})
        encoded = {}
        for name, (start, stop) in spans.items():
            x, mask = x_BTD[:, start:stop], mask_BT[:, start:stop]
            encoded[name] = self.fusion.adapt_stream(name, Tokens(x, mask, pool_stream(name, x, mask)))
        fused = self.fusion(encoded, pooled_only=pooled_only, output_attention=output_attention)
        return prepend_attention(fused, attention, spans, streams)
