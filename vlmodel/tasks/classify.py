"""Task ``classify``: predicts the class of a sample from its inputs alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from vlmodel.answers import Normalizer, answers_match, normalize_for_comparison
from vlmodel.config import ConfigError
from vlmodel.judging import AnsweredRows, ExampleAnswer, Judgement, Metrics
from vlmodel.metrics.answer_prior import AnswerPrior
from vlmodel.metrics.scores import ExampleScores
from vlmodel.operations.base import Operation
from vlmodel.operations.classify import ClassifyOperation
from vlmodel.sample import TEXTS, Sample, SampleTexts
from vlmodel.task import TaskRow
from vlmodel.tasks._classification import ClassificationTask
from vlmodel.tasks._judging import BaselineComparisons, example_answers, rows_with_target
from vlmodel.tasks._right_answers import accuracy_by_answer, score_right_answers, top_k_accuracy

if TYPE_CHECKING:
    from vlmodel.part_configs import Vocabulary
    from vlmodel.parts import Decoder
    from vlmodel.processor import VLProcessor


class Config(ClassificationTask):
    """Settings of a classifier whose classes are the processor's labels; it reads no text.

    Classes are compared letter by letter. A sample of a class that is none of the labels counts as wrong.
    """

    chooses_label: ClassVar[bool] = True
    learns_baseline: ClassVar[bool] = True
    normalizer: ClassVar[Normalizer | None] = "none"
    operations: ClassVar[tuple[Operation, ...]] = (ClassifyOperation(),)

    kind: Literal["classify"] = "classify"

    @property
    def learning_requirement(self) -> str:
        return "a class with an input"

    def reads_text(self) -> bool:
        return False

    def can_answer(self, present: frozenset[str]) -> bool:
        return bool(present - TEXTS)

    def can_learn(self, present: frozenset[str]) -> bool:
        return "class" in present and bool(present - TEXTS)

    def training_rows(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        return [[_label_row(sample)] if sample.texts.label is not None else [] for sample in samples]

    def rows_to_answer(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        """Make one row for each sample; the right answer is its class, if known."""
        return [[_label_row(sample)] for sample in samples]

    def label_candidates(self, texts: SampleTexts) -> Iterable[str]:
        return () if texts.label is None else (texts.label,)

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> Decoder:
        if vocabulary.labels < 2:
            raise ConfigError(
                f"task.kind='classify' chooses among classes, and there are {vocabulary.labels}; give at least two "
                "labels: the classes of the training data"
            )
        return self.build_classifier(widths["joint"], vocabulary.labels)

    def class_names(self, processor: VLProcessor) -> Sequence[str]:
        return processor.labels

    def class_id(self, answer: str, processor: VLProcessor) -> int:
        return processor.label_id(answer)

    def learn_baseline(self, samples: Iterable[SampleTexts], normalizer: Normalizer) -> dict[str, Any]:
        """Find the most frequent class, which the baseline gives to every sample."""
        try:
            prior = AnswerPrior.learn(
                (("", label) for texts in samples for label in self.label_candidates(texts)), normalizer
            )
        except ValueError:
            raise ValueError("no sample has a class to learn from; the training split needs at least one") from None
        return {"majority": prior.majority}

    def score_rows(self, answered: AnsweredRows, normalizer: Normalizer) -> ExampleScores:
        """Score each right class 1 and each wrong one 0."""
        return score_right_answers(answered, normalizer)

    def judge_answers(
        self, answered: AnsweredRows, baseline: Mapping[str, Any] | None, labels: Sequence[str], normalizer: Normalizer
    ) -> Judgement:
        """Compute the accuracy over samples and over classes, and calibration."""
        from vlmodel.metrics.calibration import calibration_error

        assert baseline is not None
        known = rows_with_target(answered, "sample")
        targets = [target or "" for target in known.targets]
        right = answers_match(targets, known.predicted, normalizer)
        metrics_of = partial(_plain_and_balanced_accuracy, by=normalizer)
        metrics = metrics_of(known) | top_k_accuracy(known, targets, labels, normalizer)
        metrics |= calibration_error(np.clip(known.probability, 0, 1).tolist(), right)
        compared = BaselineComparisons(known, metrics_of, partial(self.score_rows, normalizer=normalizer))
        majority = baseline["majority"]
        compared.add_baseline("majority", f'always "{majority}"', [majority] * len(known))
        compared.add_shuffled_baseline()
        notes = [f"{sum(right)} of {len(right)} samples classified right"]
        classes = {normalize_for_comparison(label, normalizer) for label in labels}
        forms = [normalize_for_comparison(target, normalizer) for target in targets]
        if unknown := sum(bool(labels) and form not in classes for form in forms):
            notes.append(f"{unknown} samples are of classes that the model does not know, and count as wrong")
        return compared.to_judgement("samples", "accuracy", metrics, notes, accuracy_by_answer(forms, right))

    def rows_for_examples_page(self, answered: AnsweredRows, normalizer: Normalizer) -> list[ExampleAnswer]:
        return example_answers(
            answered, lambda target, best: answers_match([target], [best], normalizer)[0], titled=False
        )


def _label_row(sample: Sample) -> TaskRow:
    label = sample.texts.label
    return TaskRow(target=label, references=(label,) if label is not None else ())


def _plain_and_balanced_accuracy(answered: AnsweredRows, by: Normalizer) -> Metrics:
    """Compute the accuracy over all samples, and the mean of the classes' accuracies, in which rare classes count as
    much as frequent ones.
    """
    targets = [target or "" for target in answered.targets]
    right = answers_match(targets, answered.predicted, by)
    of_classes = accuracy_by_answer([normalize_for_comparison(target, by) for target in targets], right)
    return {
        "accuracy": sum(right) / len(right),
        "balanced_accuracy": float(np.mean([accuracy for _, _, accuracy in of_classes])),
    }
