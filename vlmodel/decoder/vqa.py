"""Visual question answering as classification over a closed vocabulary of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from vlmodel import parts
from vlmodel.config import ConfigError
from vlmodel.decoder._classifier import Classifier, ClassifierConfig
from vlmodel.task_spec import TaskSpec

if TYPE_CHECKING:
    from vlmodel.processor import VLProcessor

SPEC = TaskSpec(reads="questions", target="answer")


class Config(ClassifierConfig):
    """A classifier of answers."""

    kind: Literal["vqa"] = "vqa"

    def tasks(self) -> dict[str, TaskSpec]:
        return {"": SPEC}

    def build(self, widths: Mapping[str, int], vocabulary: parts.Vocabulary) -> VQADecoder:
        if vocabulary.labels < 2:
            raise ConfigError(
                f"decoder.kind='vqa' chooses among answers, and there are {vocabulary.labels}; give at least two "
                "labels, such as the most frequent answers of the training data"
            )
        return VQADecoder(self, SPEC, widths["joint"], vocabulary.labels)


class VQADecoder(Classifier):
    """Classifier of the answers that are the processor's labels. Texts with other answers cannot be correct."""

    def classes(self, processor: VLProcessor) -> Sequence[str]:
        return processor.labels
