"""The module of the bridge ``resampler``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.layers import MultiHeadAttention, feed_forward_network

if TYPE_CHECKING:
    from vlmodel.bridge.resampler import Config


class Resampler(parts.Bridge):
    """Turns a stream of any length into a fixed number of tokens: learned queries attend to the stream and to each
    other in pre-norm layers, and are then projected to the language model's width.
    """

    def __init__(self, config: Config, width: int, out_width: int) -> None:
        super().__init__()
        self.adapt = nn.Linear(width, config.width)
        self.queries = nn.Parameter(torch.randn(config.tokens, config.width) * config.width**-0.5)
        self.rounds = nn.ModuleList(_ResamplerLayer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, out_width)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return a fixed number of tokens for each stream, (B, tokens, D), and a mask of which are real: none for a
        missing stream.
        """
        x_BSD, x_BQD = self.adapt(x_BTD), self.queries.expand(len(x_BTD), -1, -1)
        for layer in self.rounds:
            x_BQD = layer(x_BQD, x_BSD, mask_BT)
        return self.project(self.norm(x_BQD)), mask_BT.any(1, keepdim=True).expand(-1, x_BQD.shape[1])


class _ResamplerLayer(nn.Module):
    """One layer of a resampler: the queries attend to the stream and to each other, then pass a feed-forward
    network.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.query_norm, self.stream_norm, self.feed_forward_norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = MultiHeadAttention(width, config.heads)
        self.feed_forward = feed_forward_network(width, config.expansion * width, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BQD: Tensor, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        queries_BQD = self.query_norm(x_BQD)
        context_BSD = torch.cat([self.stream_norm(x_BSD), queries_BQD], dim=1)
        mask = torch.cat([mask_BS, mask_BS.new_ones(x_BQD.shape[:2])], dim=1)
        x_BQD = x_BQD + self.dropout(self.attention(queries_BQD, context_BSD, mask)[0])
        return x_BQD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BQD)))
