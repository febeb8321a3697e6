"""The module of the knowledge part ``memory``: attention from the pooled streams of a row to its facts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlmodel.layers import masked_mean, masked_softmax
from vlmodel.tokens import Rows, Streams, Tokens

if TYPE_CHECKING:
    from vlmodel.knowledge.memory import Config

LANGUAGE = "language"


class FactMemory(nn.Module):
    """A key-value memory over the facts of each row (Miller et al. 2016, arXiv:1606.03126).

    The query is a linear map of the pooled vectors of all streams of a row, the key of a fact a linear map of its mean
    token; the weights of the facts are the softmax of their dot products. The resulting stream has the tokens of the
    ``read`` facts of the greatest weights, each multiplied by its fact's weight, so that the weights are learned. Its
    pooled vector is the weighted mean of all facts. A row without facts lacks the stream.
    """

    def __init__(self, config: Config, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.width, self.read, self.contrast = config.width, config.read, config.contrast
        self.names = sorted(widths)
        self.queries = nn.ModuleDict({name: nn.Linear(widths[name], config.width) for name in self.names})
        self.query = nn.Sequential(nn.LayerNorm(config.width), nn.GELU(), nn.Linear(config.width, config.width))
        self.key = nn.Linear(widths[LANGUAGE], config.width)
        self.value = nn.Linear(widths[LANGUAGE], config.width)

    def forward(self, streams: Streams, rows: Rows, facts: Tokens, fact_rows_NJ: Tensor) -> tuple[Tokens, Tensor]:
        """Return the stream of facts for N rows, and the weights of their facts (N, J).

        Args:
            streams: of which the query is made.
            rows: for each text its row in the streams.
            facts: the M facts as the language encoder gives them.
            fact_rows_NJ: for each text the rows of its facts, -1 where it has fewer than J.
        """
        parts = []
        for name in self.names:
            if name in streams:
                present_B1 = streams[name].mask_BT.any(1, keepdim=True)
                parts.append((self.queries[name](streams[name].pooled_BD) * present_B1)[rows[name]])
        query_ND = self.query(torch.stack(parts).sum(0))
        there_NJ, index_NJ = fact_rows_NJ >= 0, fact_rows_NJ.clamp_min(0)
        mean_MF = masked_mean(facts.x_BTD, facts.mask_BT)
        key_MD = self.key(mean_MF)
        scores_NJ = (key_MD[index_NJ] @ query_ND.unsqueeze(-1)).squeeze(-1) / math.sqrt(self.width)
        weights_NJ = masked_softmax(scores_NJ, there_NJ)
        read = min(self.read, weights_NJ.shape[1])
        chosen_NI = weights_NJ.topk(read, dim=1).indices
        rows_NI = index_NJ.gather(1, chosen_NI)
        weights_NI = weights_NJ.gather(1, chosen_NI)
        value_MTD = self.value(facts.x_BTD)
        x_NITD = value_MTD[rows_NI] * weights_NI[:, :, None, None]
        mask_NIT = facts.mask_BT[rows_NI] & there_NJ.gather(1, chosen_NI).unsqueeze(-1)
        pooled_ND = (weights_NJ.unsqueeze(-1) * self.value(mean_MF)[index_NJ]).sum(1)
        return Tokens(x_NITD.flatten(1, 2), mask_NIT.flatten(1, 2), pooled_ND), weights_NJ

    def selection_loss(self, weights_NJ: Tensor, right_NJ: Tensor, weights_N: Tensor | None) -> Tensor:
        """Compute the negative log weight of the right facts, summed over the rows that have any.

        Args:
            right_NJ: True for the facts that say the answer.
            weights_N: of the rows; one if not given.
        """
        right_N = (weights_NJ.float() * right_NJ).sum(1).clamp_min(torch.finfo(torch.float32).tiny)
        has_N = right_NJ.any(1).float() * (1.0 if weights_N is None else weights_N)
        return -self.contrast * (right_N.log() * has_N).sum()
