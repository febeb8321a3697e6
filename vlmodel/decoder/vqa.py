"""Visual question answering as classification over a closed vocabulary of answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlmodel import parts
from vlmodel.config import ConfigError
from vlmodel.tokens import Fused


class Config(parts.DecoderPart):
    """A classifier of answers."""

    kind: Literal["vqa"] = "vqa"
    hidden: int | None = Field(None, ge=1)
    """Width of a hidden layer with GELU; null for a linear classifier."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the last layer."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all answers (Szegedy et al. 2016)."""

    def build(self, width: int, vocabulary: parts.Vocabulary) -> VQADecoder:
        if vocabulary.labels < 2:
            raise ConfigError(
                f"decoder.kind='vqa' chooses among answers, and there are {vocabulary.labels}; give at least two "
                "labels, such as the most frequent answers of the training data"
            )
        return VQADecoder(self, width, vocabulary.labels)


class VQADecoder(parts.Decoder):
    """Classifier on the pooled joint vector, with cross-entropy."""

    pooled_only = True

    def __init__(self, config: Config, width: int, labels: int) -> None:
        super().__init__()
        self.label_smoothing = config.label_smoothing
        hidden = [nn.Linear(width, config.hidden), nn.GELU()] if config.hidden else []
        self.head = nn.Sequential(*hidden, nn.Dropout(config.dropout), nn.Linear(config.hidden or width, labels))

    def forward(self, fused: Fused, labels_N: Tensor | None = None, weights_N: Tensor | None = None) -> parts.Decoded:
        """Scores of the answers and, where ``labels_N`` is given, loss and counts.

        Args:
            labels_N: index of the right answer, -1 where it is unknown or outside the vocabulary: such a text counts
                nothing.
            weights_N: weight of each text in loss and counts; one if not given.
        """
        logits_NK = self.head(fused.tokens.pooled_BD)
        if labels_N is None:
            return parts.Decoded(logits_NK)
        loss_N = F.cross_entropy(
            logits_NK.float(), labels_N, reduction="none", ignore_index=-1, label_smoothing=self.label_smoothing
        )
        counted_N = (labels_N >= 0).to(loss_N.dtype)
        if weights_N is not None:
            counted_N = counted_N * weights_N
        correct_N = (logits_NK.argmax(-1) == labels_N).to(loss_N.dtype)
        return parts.Decoded(logits_NK, (loss_N * counted_N).sum(), counted_N.sum(), (correct_N * counted_N).sum())
