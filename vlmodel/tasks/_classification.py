"""The base class of tasks that choose among classes by a classifier on the pooled joint vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from vlmodel.task import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlmodel.decoder.classifier import Classifier
    from vlmodel.parts import Answers, Decoder
    from vlmodel.processor import VLProcessor
    from vlmodel.tokens import DecoderInput


class ClassificationTask(Task):
    """A task in which each row has one right class among ``classes``."""

    hidden: int | None = Field(None, ge=1)
    """Width of a hidden layer with GELU; null for a linear classifier."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the last layer."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes (Szegedy et al. 2016)."""

    def class_names(self, processor: VLProcessor) -> Sequence[str]:
        """List the names of the classes in the order of the scores."""
        raise NotImplementedError

    def class_id(self, answer: str, processor: VLProcessor) -> int:
        """Return the index of a right answer's class, -1 if it is none of them."""
        raise NotImplementedError

    def is_possible_answer(self, answer: str, processor: VLProcessor) -> bool:
        return self.class_id(answer, processor) >= 0

    def is_same_answer(self, answer: str, other: str, processor: VLProcessor) -> bool:
        """Whether two answers are of the same class; if they are of none, whether they are the same words."""
        one, two = (self.class_id(text, processor) for text in (answer, other))
        return one == two if max(one, two) >= 0 else super().is_same_answer(answer, other, processor)

    def build_classifier(self, width: int, classes: int, *, counts_unknown: bool = True) -> Classifier:
        """Build the head of the task, a ``Classifier``."""
        from vlmodel.decoder.classifier import Classifier

        return Classifier(width, classes, self.hidden, self.dropout, self.label_smoothing, counts_unknown)

    def collate_targets(
        self, targets: Sequence[str | None], arrays: Mapping[str, NDArray[np.generic]], processor: VLProcessor
    ) -> dict[str, NDArray[np.generic]]:
        """Build ``labels_N`` int64: the class of each row, -1 if the target is unknown or no class."""
        ids = (-1 if target is None else self.class_id(target, processor) for target in targets)
        return {"labels_N": np.fromiter(ids, np.int64, len(targets))}

    def predict_answers(
        self, head: Decoder, encoded: DecoderInput, processor: VLProcessor, top_k: int, **settings: Any
    ) -> list[Answers]:
        """Return the most probable classes; equally probable ones keep the order of the classes."""
        from vlmodel.decoder.classifier import most_probable_classes

        return most_probable_classes(head(encoded).logits_NK, self.class_names(processor), top_k)
