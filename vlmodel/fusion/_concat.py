"""The module of ``concat``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from vlmodel import parts
from vlmodel.streams import PooledStreamAdapters
from vlmodel.tokens import FusedStream, Streams, Tokens

if TYPE_CHECKING:
    from vlmodel.fusion.concat import Config


class ConcatFusion(parts.Fusion):
    """Concatenates the pooled vectors in the order of the streams' names, then applies linear, GELU, linear and norm.

    It keeps no sequence: its result is a stream of one token. A missing stream is zeros.
    """

    def __init__(self, config: Config, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.width = config.width
        self.adapters = PooledStreamAdapters(widths, config.width)
        self.mlp = nn.Sequential(
            nn.Linear(len(widths) * config.width, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.width),
            nn.LayerNorm(config.width),
        )

    def forward(self, streams: Streams, *, pooled_only: bool = False, output_attention: bool = False) -> FusedStream:
        complete = self.adapters.add_missing_streams(streams).values()
        present_B1 = torch.stack([tokens.mask_BT for tokens in complete]).any(0)
        fused_BD = self.mlp(torch.cat([tokens.pooled_BD for tokens in complete], dim=-1))
        return FusedStream(Tokens(fused_BD.unsqueeze(1), present_B1, fused_BD), {}, keeps_sequence=False)
