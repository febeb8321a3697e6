"""Transformer fusion: all tokens in one sequence, rounds of self-attention over it, then pooled (the default)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.config import ConfigError
from vlmodel.layers import TransformerLayer, masked_mean
from vlmodel.tokens import Fused, Tokens

_ANCHOR = "language"


class Config(parts.FusionPart):
    """Rounds of multi-head self-attention and feed-forward over the concatenated streams."""

    kind: Literal["transformer"] = "transformer"
    width: int = Field(256, ge=1)
    """Width of the joint sequence; each stream is brought to it by a linear adapter."""
    rounds: int = Field(2, ge=1)
    """Number of rounds."""
    heads: int = Field(4, ge=1)
    """Attention heads; they share the width evenly."""
    expansion: int = Field(4, ge=1)
    """Width of the feed-forward layers, in multiples of ``width``."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout after attention and within the feed-forward layers."""
    pooling: Literal["cls", "mean", "attention"] = "cls"
    """The pooled vector: the first token of the language stream ([CLS]), the mean, or a learned mix of all tokens."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} cannot be shared by heads={self.heads}; make it a multiple")
        return self

    def build(self, widths: Mapping[str, int]) -> TransformerFusion:
        if self.pooling == "cls" and _ANCHOR not in widths:
            raise ConfigError(
                f"fusion.pooling='cls' takes the first token of the {_ANCHOR} stream, and the streams are "
                f"{', '.join(sorted(widths))}; use 'mean' or 'attention'"
            )
        return TransformerFusion(self, widths)


class TransformerFusion(parts.Fusion):
    """One sequence of all streams, in the order of their names, through ``rounds`` pre-norm Transformer layers.

    The bias of a stream's adapter is its modality embedding. Tokens carry their positions from their encoders.
    """

    def __init__(self, config: Config, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.width, self.pooling = config.width, config.pooling
        self.adapters = nn.ModuleDict({name: nn.Linear(widths[name], config.width) for name in sorted(widths)})
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.expansion * config.width, config.dropout)
            for _ in range(config.rounds)
        )
        self.norm = nn.LayerNorm(config.width)
        self.mix = nn.Linear(config.width, 1, bias=False) if config.pooling == "attention" else None

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        adapter = self.adapters[name]
        return Tokens(adapter(tokens.x_BTD), tokens.mask_BT, adapter(tokens.pooled_BD))

    def forward(
        self, streams: Mapping[str, Tokens], *, pooled_only: bool = False, output_attention: bool = False
    ) -> Fused:
        names = sorted(streams)
        spans = _spans(streams, names)
        x_BTD = torch.cat([streams[name].x_BTD for name in names], dim=1)
        mask_BT = torch.cat([streams[name].mask_BT for name in names], dim=1)
        first = slice(spans[_ANCHOR][0], spans[_ANCHOR][0] + 1) if self.pooling == "cls" else None
        # The last round need only be computed for the token that becomes the pooled vector, if no other is read.
        short = first is not None and pooled_only and not output_attention
        attention: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            queries = first if short and i == len(self.layers) - 1 else None
            x_BTD, weights = layer(x_BTD, mask_BT, queries, output_attention)
            if weights is not None:
                attention.append(weights)
        x_BTD = self.norm(x_BTD)
        if short:
            return Fused(Tokens(x_BTD, mask_BT[:, first], x_BTD[:, 0]), {})
        tokens = Tokens(x_BTD, mask_BT, self._pool(x_BTD, mask_BT, first))
        return Fused(tokens, spans, torch.stack(attention) if attention else None)

    def _pool(self, x_BTD: Tensor, mask_BT: Tensor, first: slice | None) -> Tensor:
        if first is not None:
            return x_BTD[:, first.start]
        if self.mix is None:
            return masked_mean(x_BTD, mask_BT)
        scores_BT = self.mix(x_BTD).squeeze(-1).masked_fill(~mask_BT, -torch.inf)
        return (scores_BT.softmax(-1).unsqueeze(-1) * x_BTD).sum(1)


def _spans(streams: Mapping[str, Tokens], names: list[str]) -> dict[str, tuple[int, int]]:
    spans, start = {}, 0
    for name in names:
        stop = start + streams[name].x_BTD.shape[1]
        spans[name], start = (start, stop), stop
    return spans
