"""The head of the task ``triples``: it trains the vector of a question (head and relation) to be similar to the vector
of the answer (tail).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmodel import parts
from vlmodel.tokens import DecoderInput

_LARGEST_SCALE = 100.0


class TriplesDecoder(parts.Decoder):
    """Projects questions (head and relation) and tails linearly into one space, with a learned temperature.

    The loss of a fact is the negative log probability of its tail among those of the batch (SimKGC, Wang et al. 2022,
    arXiv:2203.02167, section 3.3); a question with several right tails in the batch has the mean of theirs (Khosla et
    al. 2020, arXiv:2004.11362, eq. 2). It is correct if a right tail is nearer than every other.
    """

    reads_joint_stream = False

    def __init__(self, language: int, width: int, temperature: float) -> None:
        super().__init__()
        self.query = nn.Linear(language, width, bias=False)
        self.tail = nn.Linear(language, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(min(math.log(_LARGEST_SCALE), -math.log(temperature))))

    def forward(  # type: ignore[override]
        self, encoded: DecoderInput, weights_N: Tensor | None = None, text_key_N: Tensor | None = None
    ) -> parts.DecoderOutput:
        """Compute the contrastive loss and the counts of M facts.

        Args:
            weights_N: of the N = 2 M rows, first those of the questions, then those of their tails; a question of
                weight zero is not counted, and its tail is no candidate.
            text_key_N: equal for equal texts.
        """
        query_ND, tail_ND = self.embed(encoded)
        if text_key_N is None or weights_N is None:
            return parts.DecoderOutput()
        count = len(text_key_N) // 2
        query_MD, tail_MD, weights_M = query_ND[:count], tail_ND[count:], weights_N[:count].float()
        asked_M, told_M = text_key_N[:count], text_key_N[count:]
        if self.training:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(_LARGEST_SCALE))
        with torch.autocast(query_MD.device.type, enabled=False):
            scores_MM = self.log_scale.exp() * query_MD.float() @ tail_MD.float().T
            counted_M = weights_M > 0
            # A tail is right for a question if a fact of the batch says it, of the same or of another row.
            said_MM = ((asked_M[:, None] == asked_M) & counted_M).float()
            right_MM = (said_MM @ (told_M[:, None] == told_M).float() > 0) & counted_M
            # Each text is a candidate once.
            first_M = (told_M[:, None] == told_M).float().masked_fill(~counted_M, 0).argmax(1)
            once_M = counted_M & (first_M == torch.arange(count, device=first_M.device))
            lowest = torch.finfo(scores_MM.dtype).min
            candidate_MM = scores_MM.masked_fill(~once_M, lowest)
            right_MM = right_MM & once_M
            log_sum_M = candidate_MM.logsumexp(1)
            mean_M = (scores_MM * right_MM).sum(1) / right_MM.sum(1).clamp_min(1)
            wrong_M = candidate_MM.masked_fill(right_MM, lowest).amax(1)
            correct_M = candidate_MM.masked_fill(~right_MM, lowest).amax(1) > wrong_M
        loss_M = (log_sum_M - mean_M) * weights_M
        total = weights_M.sum()
        return parts.DecoderOutput(None, loss_M.sum(), total, (correct_M * weights_M).sum(), total)

    def embed(self, encoded: DecoderInput) -> tuple[Tensor, Tensor]:
        """Embed each of N texts both as a question and as a tail: two arrays (N, D) of vectors of length one."""
        pooled_UD, row_N = encoded.streams["language"].pooled_BD, encoded.rows["language"]
        query_UD, tail_UD = (F.normalize(linear(pooled_UD).float(), dim=-1) for linear in (self.query, self.tail))
        return query_UD.index_select(0, row_N), tail_UD.index_select(0, row_N)
