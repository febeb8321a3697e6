"""Image-text matching: does this text belong to this image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from vlmodel import parts
from vlmodel.decoder._classifier import Classifier, ClassifierConfig
from vlmodel.task_spec import MATCH, NO_MATCH, TaskSpec
from vlmodel.tokens import DecoderInput

if TYPE_CHECKING:
    from vlmodel.processor import VLProcessor

CLASSES = (NO_MATCH, MATCH)


class Config(ClassifierConfig):
    """A classifier of pairs of image and text."""

    kind: Literal["matching"] = "matching"
    pairs: Literal["captions", "questions"] = "captions"
    """"captions" are paired with their own image and another of the batch; "questions" are statements with answers."""

    def tasks(self) -> dict[str, TaskSpec]:
        return {"": TaskSpec(reads=self.pairs, target="match")}

    def build(self, widths: Mapping[str, int], vocabulary: parts.Vocabulary) -> MatchingDecoder:
        return MatchingDecoder(self, self.tasks()[""], widths["joint"], len(CLASSES))


class MatchingDecoder(Classifier):
    """Two classes on the pooled joint vector, as the matching heads of ViLBERT (Lu et al. 2019) and its successors.

    Labelled statements, as those of NLVR or SNLI-VE, are questions with answers such as "yes" or "entailment"
    (``task_spec.MATCHES``).
    """

    def forward(  # type: ignore[override]
        self, encoded: DecoderInput, labels_N: Tensor | None = None, weights_N: Tensor | None = None
    ) -> parts.DecoderOutput:
        """As ``Classifier``'s; ``labels_N`` is 1 if text and image belong together, 0 if not, -1 if unknown.

        Unknown pairs are not in the ``total`` either.
        """
        decoded = super().forward(encoded, labels_N, weights_N)
        return replace(decoded, total=decoded.count)

    def classes(self, processor: VLProcessor) -> Sequence[str]:
        return CLASSES
