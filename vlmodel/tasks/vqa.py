"""Task ``vqa``: visual question answering as classification over a closed list of answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from vlmodel.config import ConfigError
from vlmodel.sample import SampleTexts
from vlmodel.tasks._answering import QuestionTask
from vlmodel.tasks._classification import ClassificationTask
from vlmodel.tasks._texts import answers_of

if TYPE_CHECKING:
    from vlmodel.part_configs import Vocabulary
    from vlmodel.parts import Decoder
    from vlmodel.processor import VLProcessor


class Config(QuestionTask, ClassificationTask):
    """Settings of a classifier whose classes are the processor's labels (answers). A row with any other right answer
    cannot be answered correctly.
    """

    chooses_label: ClassVar[bool] = True

    kind: Literal["vqa"] = "vqa"

    def label_candidates(self, texts: SampleTexts) -> Iterable[str]:
        return answers_of(texts)

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> Decoder:
        if vocabulary.labels < 2:
            raise ConfigError(
                f"task.kind='vqa' chooses among answers, and there are {vocabulary.labels}; give at least two "
                "labels, such as the most frequent answers of the training data"
            )
        return self.build_classifier(widths["joint"], vocabulary.labels)

    def class_names(self, processor: VLProcessor) -> Sequence[str]:
        return processor.labels

    def class_id(self, answer: str, processor: VLProcessor) -> int:
        return processor.label_id(answer)
