"""The module of ``interactive``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.streams import ANCHOR, CoAttention, StreamAdapters, pool_stream, stream_spans
from vlmodel.tokens import FusedStream, Streams, Tokens

if TYPE_CHECKING:
    from vlmodel.fusion.interactive import Config


class InteractiveFusion(parts.Fusion):
    """Lets the streams attend to each other for several rounds of pre-norm cross-attention and feed-forward.

    After ViLBERT (Lu et al. 2019) and LXMERT (Tan & Bansal 2019), for any number of streams. The joint sequence is the
    concatenation of the streams. Its pooled vector is a linear map of the streams' pooled vectors: the first token of
    the language stream, the mean of any other, zeros of a missing one. Its attention is from each token to the tokens
    of the other streams, and zero within a stream. A single stream has feed-forward layers only, and no attention.
    """

    def __init__(self, config: Config, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.width = config.width
        self.adapters = StreamAdapters(widths, config.width)
        self.layers = nn.ModuleList(
            CoAttention(widths, config.width, config.heads, config.expansion * config.width, config.dropout)
            for _ in range(config.rounds)
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(config.width) for name in sorted(widths)})
        self.combine = nn.Linear(len(widths) * config.width, config.width)

    def forward(self, streams: Streams, *, pooled_only: bool = False, output_attention: bool = False) -> FusedStream:
        complete = self.adapters.add_missing_streams(streams)
        x = {name: tokens.x_BTD for name, tokens in complete.items()}
        mask = {name: tokens.mask_BT for name, tokens in complete.items()}
        spans = {name: span for name, span in stream_spans(x).items() if name in streams}
        # If only the pooled vector is read, the last round of the anchor is computed for its first token alone.
        short = pooled_only and not output_attention
        attention: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            queries = {ANCHOR: slice(0, 1)} if short and i == len(self.layers) - 1 else None
            x, weights = layer(x, mask, queries, output_attention)
            if weights is not None:
                attention.append(weights)
        x = {name: self.norms[name](x_BTD) for name, x_BTD in x.items()}
        pooled = [pool_stream(name, x[name], mask[name]) * mask[name].any(1, keepdim=True) for name in x]
        pooled_BD = self.combine(torch.cat(pooled, dim=-1))
        mask_BT = torch.cat(list(mask.values()), dim=1)
        if short:
            pooled_token = Tokens(pooled_BD.unsqueeze(1), mask_BT.any(1, keepdim=True), pooled_BD)
            return FusedStream(pooled_token, {}, keeps_sequence=False)
        tokens = Tokens(torch.cat(list(x.values()), dim=1), mask_BT, pooled_BD)
        return FusedStream(tokens, spans, torch.stack(attention) if attention else None)
