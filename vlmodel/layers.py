"""Attention and pre-norm Transformer layers for padded streams; a stream may be all padding.

``nn.TransformerEncoderLayer`` is not used because it cannot take queries of a part of the stream, returns no attention
weights, and computes differently (nested tensors) in evaluation and in training.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}
"""Activations that may follow an encoder's projection."""


class MultiHeadAttention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017) from one stream to itself or to another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        for linear in (self.query, self.key_value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, x_BQD: Tensor, context_BSD: Tensor, mask_BS: Tensor, output_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from the queries ``x_BQD`` to the keys and values ``context_BSD`` where ``mask_BS`` is True.

        Returns:
            The attended values (B, Q, D) and, on request, the weights averaged over the heads (B, Q, S). Both are zero
            in a row whose mask is all False, and its context gets no gradient.
        """
        q = self.query(x_BQD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (t.transpose(1, 2) for t in self.key_value(context_BSD).unflatten(-1, (2, self.heads, -1)).unbind(-3))
        # The softmax over nothing depends on the kernel: such a row attends to everything, and its result is set to
        # zero afterwards, together with the output's bias.
        present_B11 = mask_BS.any(1)[:, None, None]
        mask_B11S = mask_BS[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11S | ~present_B11.unsqueeze(-1))
        weights = None
        if output_weights:
            scores = (q.float() @ k.float().transpose(-1, -2)) / math.sqrt(q.shape[-1])
            weights = masked_softmax(scores, mask_B11S).mean(1)
        return self.out(attended.transpose(1, 2).flatten(-2)) * present_B11, weights


class TransformerLayer(nn.Module):
    """A pre-norm Transformer layer: attention and feed-forward network, each with a residual connection (Xiong et al.
    2020).
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward_network(width, feed_forward, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, mask_BT: Tensor, queries: slice | None = None, output_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention over ``x_BTD``; if ``queries`` are given, only those tokens are updated and returned."""
        normed = self.attention_norm(x_BTD)
        queries_BQD, x = (normed, x_BTD) if queries is None else (normed[:, queries], x_BTD[:, queries])
        attended, weights = self.attention(queries_BQD, normed, mask_BT, output_weights)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), weights


def feed_forward_network(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Build the feed-forward network of a Transformer layer."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))


def parameter_names_by_stage(module: nn.Module, path: str) -> list[list[str]]:
    """Group the names of a module's parameters: those before the stages, those of each stage, and those after the last.

    Args:
        path: of the submodule whose children are the stages; "" for the module itself.
    """
    start = f"{path}." if path else ""
    stages = [
        [f"{start}{stage}.{name}" for name, _ in child.named_parameters()]
        for stage, child in module.get_submodule(path).named_children()
    ]
    listed = {name for names in stages for name in names}
    names = [name for name, _ in module.named_parameters()]
    first = next((place for place, name in enumerate(names) if name in listed), len(names))
    return [names[:first], *stages, [name for name in names[first:] if name not in listed]]


def to_transformers_mask(model: Any, mask: Tensor) -> Tensor:
    """Convert a boolean attention mask to the form that a model of transformers takes: the mask itself for sdpa,
    otherwise a bias that is added to the scores.
    """
    if model.config._attn_implementation == "sdpa":
        return mask
    return (~mask).to(model.dtype) * torch.finfo(model.dtype).min


def masked_softmax(scores: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Compute the softmax over the scores where ``mask`` is True; all zeros if none are."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim) * mask


def indices_by_rank(rank_BT: Tensor) -> Tensor:
    """Return the indices (B, T) that sort each row by rank, the greatest first and equal ones in their order.

    As a stable ``argsort``, which ONNX does not have.
    """
    places_T = torch.arange(rank_BT.shape[1], device=rank_BT.device)
    return (rank_BT.long() * rank_BT.shape[1] - places_T).argsort(dim=1, descending=True)


def masked_mean(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Average the real tokens of each stream (B, D); zero for a stream without any."""
    weight_BT1 = mask_BT.unsqueeze(-1).to(x_BTD.dtype)
    return (x_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp_min(1)
