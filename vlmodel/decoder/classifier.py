"""A head that classifies the pooled vector of the joint stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmodel import parts
from vlmodel.tokens import DecoderInput


class Classifier(parts.Decoder):
    """Classifies the pooled vector of the joint stream by a linear layer or an MLP with one hidden layer, trained by
    cross-entropy.

    Args:
        width: of the joint stream.
        hidden: width of a hidden layer; None for a linear classifier.
        counts_unknown: whether rows of unknown class count as wrong: they are then part of ``total``.
    """

    pooled_only = True

    def __init__(
        self,
        width: int,
        classes: int,
        hidden: int | None = None,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        counts_unknown: bool = True,
    ) -> None:
        super().__init__()
        self.label_smoothing, self.counts_unknown = label_smoothing, counts_unknown
        layers = [nn.Linear(width, hidden), nn.GELU()] if hidden else []
        self.head = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(hidden or width, classes))

    def forward(  # type: ignore[override]
        self, encoded: DecoderInput, labels_N: Tensor | None = None, weights_N: Tensor | None = None
    ) -> parts.DecoderOutput:
        """Compute the class scores (N, K) and, if ``labels_N`` is given, the loss and the number of right predictions.

        Args:
            labels_N: index of the correct class, -1 if it is unknown or none of them: such a text has no loss.
            weights_N: weight of each text in loss and counts; one if not given.
        """
        logits_NK = self.head(encoded.fused_stream.tokens.pooled_BD)
        if labels_N is None:
            return parts.DecoderOutput(logits_NK)
        loss_N = F.cross_entropy(
            logits_NK.float(), labels_N, reduction="none", ignore_index=-1, label_smoothing=self.label_smoothing
        )
        all_N = torch.ones_like(loss_N) if weights_N is None else weights_N.to(loss_N.dtype)
        counted_N = (labels_N >= 0) * all_N
        correct_N = (logits_NK.argmax(-1) == labels_N) * all_N
        count = counted_N.sum()
        total = all_N.sum() if self.counts_unknown else count
        return parts.DecoderOutput(logits_NK, (loss_N * counted_N).sum(), count, correct_N.sum(), total)


def most_probable_classes(logits_NK: Tensor | None, classes: Sequence[str], top_k: int) -> list[parts.Answers]:
    """Return the most probable classes of each row; equally probable ones keep the order of the classes."""
    assert logits_NK is not None
    probabilities_NK = logits_NK.float().softmax(-1).cpu().numpy()
    best_NK = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, :top_k]
    best = np.take_along_axis(probabilities_NK, best_NK, axis=1)
    return [
        [(classes[k], p) for k, p in zip(*row, strict=True)]
        for row in zip(best_NK.tolist(), best.tolist(), strict=True)
    ]
