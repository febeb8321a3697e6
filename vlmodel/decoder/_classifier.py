"""A classifier on the pooled joint vector: what the decoders that choose among classes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlmodel import parts
from vlmodel.task_spec import TaskSpec
from vlmodel.tokens import DecoderInput

if TYPE_CHECKING:
    from vlmodel.processor import VLProcessor


class ClassifierConfig(parts.DecoderPart):
    """Settings of a classifier."""

    hidden: int | None = Field(None, ge=1)
    """Width of a hidden layer with GELU; null for a linear classifier."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the last layer."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""


class Classifier(parts.Decoder):
    """Cross-entropy over the classes; subclasses name them."""

    pooled_only = True

    def __init__(self, config: ClassifierConfig, spec: TaskSpec, width: int, classes: int) -> None:
        super().__init__()
        self.spec, self.label_smoothing = spec, config.label_smoothing
        hidden = [nn.Linear(width, config.hidden), nn.GELU()] if config.hidden else []
        self.head = nn.Sequential(*hidden, nn.Dropout(config.dropout), nn.Linear(config.hidden or width, classes))

    def forward(  # type: ignore[override]
        self, encoded: DecoderInput, labels_N: Tensor | None = None, weights_N: Tensor | None = None
    ) -> parts.DecoderOutput:
        """Scores of the classes and, where ``labels_N`` is given, loss and counts.

        Args:
            labels_N: index of the correct class, -1 if it is unknown or none of them: such a text has no loss.
            weights_N: weight of each text in loss and counts; one if not given.
        """
        logits_NK = self.head(encoded.fused.tokens.pooled_BD)
        if labels_N is None:
            return parts.DecoderOutput(logits_NK)
        loss_N = F.cross_entropy(
            logits_NK.float(), labels_N, reduction="none", ignore_index=-1, label_smoothing=self.label_smoothing
        )
        all_N = torch.ones_like(loss_N) if weights_N is None else weights_N.to(loss_N.dtype)
        counted_N = (labels_N >= 0) * all_N
        correct_N = (logits_NK.argmax(-1) == labels_N) * all_N
        return parts.DecoderOutput(logits_NK, (loss_N * counted_N).sum(), counted_N.sum(), correct_N.sum(), all_N.sum())

    def classes(self, processor: VLProcessor) -> Sequence[str]:
        """The names of the classes, in the order of the scores."""
        raise NotImplementedError

    def answer(self, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any) -> list[parts.Answers]:
        return best_classes(self.head(encoded.fused.tokens.pooled_BD), self.classes(processor), top_k)


def best_classes(logits_NK: Tensor, classes: Sequence[str], top_k: int) -> list[parts.Answers]:
    """The most probable classes of each row, ties in the order of the classes."""
    probabilities_NK = logits_NK.float().softmax(-1).cpu().numpy()
    best_NK = np.argsort(-probabilities_NK, axis=1, kind="stable")[:, :top_k]
    best = np.take_along_axis(probabilities_NK, best_NK, axis=1)
    return [
        [(classes[k], p) for k, p in zip(*row, strict=True)]
        for row in zip(best_NK.tolist(), best.tolist(), strict=True)
    ]
