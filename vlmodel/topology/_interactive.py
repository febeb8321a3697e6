"""The module of ``interactive``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vlmodel import parts
from vlmodel.layers import MultiHeadAttention
from vlmodel.streams import (
    CoAttention,
    StreamAdapters,
    block_diagonal_attention,
    pool_stream,
    prepend_attention,
    stream_spans,
)
from vlmodel.tokens import FusedStream, Rows, Streams, Tokens

if TYPE_CHECKING:
    from vlmodel.topology.interactive import Config


class InteractiveEncoder(parts.Topology):
    """Applies ``depth`` co-attention layers, with separate weights for each stream, before the fusion.

    As the cross-modality encoder of LXMERT (Tan & Bansal 2019) and the co-attentional layers of ViLBERT (Lu et al.
    2019), pre-norm and for any number of streams. A shared stream is repeated for each of its texts before the first
    cross-attention: its adapter and its first self-attention run once.

    The attention is that of the layers, for each a round of self-attention (zero between streams) and one of
    cross-attention (zero within a stream), followed by the fusion's own if it has the same joint sequence. With a
    fusion that keeps no sequence, the spans are those of the layers' sequence.
    """

    def __init__(self, config: Config, fusion: parts.Fusion, widths: Mapping[str, int]) -> None:
        super().__init__(fusion)
        self.adapters = StreamAdapters(widths, config.width)
        size = (config.width, config.heads)
        self.own = nn.ModuleList(StreamSelfAttention(widths, *size, config.dropout) for _ in range(config.depth))
        self.cross = nn.ModuleList(
            CoAttention(widths, *size, config.expansion * config.width, config.dropout) for _ in range(config.depth)
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(config.width) for name in sorted(widths)})

    def forward(
        self, streams: Streams, rows: Rows, *, pooled_only: bool = False, output_attention: bool = False
    ) -> FusedStream:
        adapted = {name: self.adapters.adapt_stream(name, tokens) for name, tokens in streams.items()}
        complete = self.adapters.add_missing_streams(adapted, rows)
        x = {name: tokens.x_BTD for name, tokens in complete.items()}
        mask = {name: tokens.mask_BT for name, tokens in complete.items()}
        attention: list[Tensor] = []
        for i, (own, cross) in enumerate(zip(self.own, self.cross, strict=True)):
            x, weights = own(x, mask, output_attention)
            if i == 0:
                x, mask, weights = _select_rows(x, rows), _select_rows(mask, rows), _select_rows(weights, rows)
            if weights:
                attention.append(block_diagonal_attention(weights))
            x, weights_BQS = cross(x, mask, None, output_attention)
            if weights_BQS is not None:
                attention.append(weights_BQS)
        spans = stream_spans(x)
        encoded = {}
        for name, norm in self.norms.items():
            x_BTD = norm(x[name])
            tokens = Tokens(x_BTD, mask[name], pool_stream(name, x_BTD, mask[name]))
            encoded[name] = self.fusion.adapt_stream(name, tokens)
        fused = self.fusion(encoded, pooled_only=pooled_only, output_attention=output_attention)
        return prepend_attention(fused, attention, spans, streams)


class StreamSelfAttention(nn.Module):
    """Self-attention within each stream, with separate weights for each, pre-norm and residual."""

    def __init__(self, names: Iterable[str], width: int, heads: int, dropout: float) -> None:
        super().__init__()
        names = sorted(names)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in names})
        self.attentions = nn.ModuleDict({name: MultiHeadAttention(width, heads) for name in names})
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Mapping[str, Tensor], mask: Mapping[str, Tensor], output_weights: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Update the tokens (B, T, D) of each stream and, if requested, return the attention weights (B, T, T)."""
        result, weights = {}, {}
        for name, attention in self.attentions.items():
            normed_BTD = self.norms[name](x[name])
            attended, weights_BTT = attention(normed_BTD, normed_BTD, mask[name], output_weights)
            result[name] = x[name] + self.dropout(attended)
            if weights_BTT is not None:
                weights[name] = weights_BTT
        return result, weights


def _select_rows(tensors: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    return {name: t.index_select(0, rows[name]) if name in rows else t for name, t in tensors.items()}
