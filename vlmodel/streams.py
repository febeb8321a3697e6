"""Operations on named streams: projecting them to one width, concatenating them, cross-attention.

Streams are in the order of their names. One that is not given is missing in every row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmodel.layers import MultiHeadAttention, feed_forward_network, masked_mean
from vlmodel.tokens import FusedStream, Rows, Streams, Tokens

ANCHOR = "language"
"""The stream whose pooled vector is its first token ([CLS])."""

Spans = dict[str, tuple[int, int]]


class StreamAdapters(nn.ModuleDict):
    """Linear layers, one for each stream, that project the streams to one width; the bias serves as the modality
    embedding.

    Padding is set to zero first, so that its values change nothing. The tokens of a missing stream are then its
    modality embedding, with which the anchor's first token can still attend to the other streams.
    """

    def __init__(self, widths: Mapping[str, int], width: int) -> None:
        super().__init__({name: nn.Linear(widths[name], width) for name in sorted(widths)})
        self.widths = dict(widths)

    def adapt_stream(self, name: str, tokens: Tokens) -> Tokens:
        x_BTD = self[name](tokens.x_BTD.masked_fill(~tokens.mask_BT.unsqueeze(-1), 0))
        pooled_BD = self[name](tokens.pooled_BD.masked_fill(~tokens.mask_BT.any(1, keepdim=True), 0))
        return Tokens(x_BTD, tokens.mask_BT, pooled_BD)

    def add_missing_streams(self, streams: Streams, rows: Rows | None = None) -> dict[str, Tokens]:
        """Add a masked token for each stream that is missing from the adapted ``streams``.

        Args:
            rows: indices by which some streams will be selected, so that the new ones get as many rows.
        """
        name, first = next(iter(streams.items()))
        count = len((rows or {}).get(name, first.mask_BT))
        complete = {}
        for name in sorted(self.widths):
            if name in streams:
                complete[name] = streams[name]
                continue
            zeros_BTD = first.x_BTD.new_zeros(count, 1, self.widths[name])
            mask_BT = first.mask_BT.new_zeros(count, 1)
            complete[name] = self.adapt_stream(name, Tokens(zeros_BTD, mask_BT, zeros_BTD[:, 0]))
        return complete


class PooledStreamAdapters(StreamAdapters):
    """Adapters that project only the pooled vectors: a stream becomes one token, which is zero in rows where it is
    missing.
    """

    def adapt_stream(self, name: str, tokens: Tokens) -> Tokens:
        present_B1 = tokens.mask_BT.any(1, keepdim=True)
        pooled_BD = self[name](tokens.pooled_BD.masked_fill(~present_B1, 0)) * present_B1
        return Tokens(pooled_BD.unsqueeze(1), present_B1, pooled_BD)


class CoAttention(nn.Module):
    """One pre-norm layer in which each stream attends to all others, then passes a feed-forward network.

    Each stream has its own weights, as in the co-attentional layers of ViLBERT (Lu et al. 2019). Rows without other
    streams, and a single stream, have the feed-forward network only.
    """

    def __init__(self, names: Iterable[str], width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        names = sorted(names)
        attending = names if len(names) > 1 else []
        self.attention_norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in attending})
        self.attentions = nn.ModuleDict({name: MultiHeadAttention(width, heads) for name in attending})
        self.feed_forward_norms = nn.ModuleDict({name: nn.LayerNorm(width) for name in names})
        self.feed_forwards = nn.ModuleDict({name: feed_forward_network(width, hidden, dropout) for name in names})
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Mapping[str, Tensor],
        mask: Mapping[str, Tensor],
        queries: Mapping[str, slice] | None = None,
        output_weights: bool = False,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Update the tokens (B, T, D) of all streams, given their masks (B, T).

        Args:
            queries: of the streams that are named, only these tokens are updated and returned.

        Returns:
            The tokens, and on request the weights in the joint sequence (B, Q, S), zero within a stream; None for a
            single stream.
        """
        normed = {name: norm(x[name]) for name, norm in self.attention_norms.items()}
        result, weights = {}, []
        for name in x:
            positions = (queries or {}).get(name, slice(None))
            x_BQD = x[name][:, positions]
            if normed:
                context_BSD = torch.cat([normed[other] for other in x if other != name], dim=1)
                mask_BS = torch.cat([mask[other] for other in x if other != name], dim=1)
                attended, weights_BQS = self.attentions[name](
                    normed[name][:, positions], context_BSD, mask_BS, output_weights
                )
                x_BQD = x_BQD + self.dropout(attended)
                if weights_BQS is not None:
                    start, stop = stream_spans(x)[name]
                    within = weights_BQS.new_zeros(*weights_BQS.shape[:2], stop - start)
                    weights.append(torch.cat([weights_BQS[..., :start], within, weights_BQS[..., start:]], dim=-1))
            result[name] = x_BQD + self.dropout(self.feed_forwards[name](self.feed_forward_norms[name](x_BQD)))
        return result, torch.cat(weights, dim=1) if weights else None


def stream_spans(x: Mapping[str, Tensor]) -> Spans:
    """Return (start, stop) of each stream (B, T, D) within the concatenated sequence."""
    spans, start = {}, 0
    for name, x_BTD in x.items():
        spans[name] = (start, start + x_BTD.shape[1])
        start += x_BTD.shape[1]
    return spans


def block_diagonal_attention(weights: Mapping[str, Tensor]) -> Tensor:
    """Place the self-attention weights of all streams (B, T, T) as blocks within the weights of the concatenated
    sequence (B, Q, S).
    """
    spans = stream_spans(weights)
    total = max(stop for _, stop in spans.values())
    return torch.cat([F.pad(w, (spans[name][0], total - spans[name][1])) for name, w in weights.items()], dim=1)


def pool_stream(name: str, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Pool a stream to a vector (B, D): the first token of the anchor stream, the mean of the real tokens of
    another.
    """
    return x_BTD[:, 0] if name == ANCHOR else masked_mean(x_BTD, mask_BT)


def prepend_attention(
    fused: FusedStream, rounds: Sequence[Tensor], spans: Spans, given: Collection[str]
) -> FusedStream:
    """Put the attention (B, Q, S) of a topology's ``rounds`` before that of the fusion in ``fused``.

    A fusion without a sequence gets the topology's spans, too; one with another sequence keeps its own attention only.
    The result has spans of the ``given`` streams.
    """
    if rounds and (not fused.spans or fused.spans == spans):
        own = [] if fused.attention_LBQS is None else [fused.attention_LBQS]
        fused = replace(fused, spans=spans, attention_LBQS=torch.cat([torch.stack(list(rounds)), *own]))
    return replace(fused, spans={name: span for name, span in fused.spans.items() if name in given})
