"""The module of ``gated``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from vlmodel import parts
from vlmodel.layers import masked_softmax
from vlmodel.streams import PooledStreamAdapters
from vlmodel.tokens import FusedStream, Streams, Tokens

if TYPE_CHECKING:
    from vlmodel.fusion.gated import Config


class GatedFusion(parts.Fusion):
    """Gated Multimodal Unit (Arevalo et al. 2017, arXiv:1702.01992) for any number of streams.

    Stream i gives h_i = tanh(W_i v_i) of its pooled vector v_i; the result is the sum of z_i * h_i, elementwise. The
    gates z are a softmax, over the streams that are present, of a linear map of all W_i v_i. For two streams that is
    the paper's bimodal unit with the gates sigmoid(s) and 1 - sigmoid(s). The paper's independent sigmoids for more
    streams are not used, as the size of the result would depend on how many streams a row has. A missing stream has the
    gate 0. A single stream has no gate.

    It keeps no sequence: its result is a stream of one token.
    """

    def __init__(self, config: Config, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.width = config.width
        self.adapters = PooledStreamAdapters(widths, config.width)
        joint = len(widths) * config.width
        self.gate = nn.Linear(joint, joint) if len(widths) > 1 else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, streams: Streams, *, pooled_only: bool = False, output_attention: bool = False) -> FusedStream:
        complete = self.adapters.add_missing_streams(streams).values()
        present_B1 = torch.stack([tokens.mask_BT for tokens in complete]).any(0)
        # Each stream has one token, its pooled vector, so T is the number of streams.
        x_BTD = torch.cat([tokens.x_BTD for tokens in complete], dim=1)
        hidden_BTD = x_BTD.tanh()
        if self.gate is not None:
            mask_BT1 = torch.stack([tokens.mask_BT for tokens in complete], dim=1)
            scores_BTD = self.gate(x_BTD.flatten(1)).view_as(x_BTD)
            hidden_BTD = masked_softmax(scores_BTD, mask_BT1, dim=1) * hidden_BTD
        fused_BD = self.dropout(hidden_BTD.sum(1))
        return FusedStream(Tokens(fused_BD.unsqueeze(1), present_B1, fused_BD), {}, keeps_sequence=False)
