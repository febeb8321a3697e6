"""The module of ``transformer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.layers import TransformerLayer, masked_mean, masked_softmax
from vlmodel.streams import ANCHOR, StreamAdapters, stream_spans
from vlmodel.tokens import FusedStream, Streams, Tokens

if TYPE_CHECKING:
    from vlmodel.fusion.transformer import Config


class TransformerFusion(parts.Fusion):
    """Concatenates all streams in the order of their names and applies ``rounds`` pre-norm Transformer layers.

    The bias of a stream's adapter is its modality embedding. Positions come from the encoders. With 'cls' pooling, a
    missing language stream is its modality embedding, whose token attends to the other streams.
    """

    def __init__(self, config: Config, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.width = config.width
        self.first = config.pooling == "cls" and ANCHOR in widths
        self.adapters = StreamAdapters(widths, config.width)
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.expansion * config.width, config.dropout)
            for _ in range(config.rounds)
        )
        self.norm = nn.LayerNorm(config.width)
        self.mix = nn.Linear(config.width, 1, bias=False) if config.pooling == "attention" else None

    def forward(self, streams: Streams, *, pooled_only: bool = False, output_attention: bool = False) -> FusedStream:
        complete = self.adapters.add_missing_streams(streams)
        spans = stream_spans({name: tokens.x_BTD for name, tokens in complete.items()})
        x_BTD = torch.cat([tokens.x_BTD for tokens in complete.values()], dim=1)
        mask_BT = torch.cat([tokens.mask_BT for tokens in complete.values()], dim=1)
        first = slice(spans[ANCHOR][0], spans[ANCHOR][0] + 1) if self.first else None
        # If only the pooled vector is read, the last round is computed for its token alone.
        short = first is not None and pooled_only and not output_attention
        attention: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            queries = first if short and i == len(self.layers) - 1 else None
            x_BTD, weights = layer(x_BTD, mask_BT, queries, output_attention)
            if weights is not None:
                attention.append(weights)
        x_BTD = self.norm(x_BTD)
        if short:
            return FusedStream(Tokens(x_BTD, mask_BT[:, first], x_BTD[:, 0]), {}, keeps_sequence=False)
        tokens = Tokens(x_BTD, mask_BT, self._pool_sequence(x_BTD, mask_BT, first))
        given = {name: span for name, span in spans.items() if name in streams}
        return FusedStream(tokens, given, torch.stack(attention) if attention else None)

    def _pool_sequence(self, x_BTD: Tensor, mask_BT: Tensor, first: slice | None) -> Tensor:
        if first is not None:
            return x_BTD[:, first.start]
        if self.mix is None:
            return masked_mean(x_BTD, mask_BT)
        weights_BT1 = masked_softmax(self.mix(x_BTD), mask_BT.unsqueeze(-1), dim=1)
        return (weights_BT1 * x_BTD).sum(1)
