"""Task ``matching``: does this text belong to this image?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from vlmodel.answers import Normalizer
from vlmodel.judging import AnsweredRows, ExampleAnswer, Judgement, Metrics
from vlmodel.metrics.scores import ExampleScores
from vlmodel.operations.base import BatchedRequest, Operation
from vlmodel.operations.match import MatchOperation, MatchResult
from vlmodel.sample import TEXTS, Sample, SampleTexts
from vlmodel.task import TaskRow
from vlmodel.tasks._classification import ClassificationTask
from vlmodel.tasks._judging import BaselineComparisons, example_answers, rows_with_target, split_baseline_metrics
from vlmodel.tasks._texts import captions_of, question_rows, questions_of

if TYPE_CHECKING:
    from vlmodel.inference import Predictor
    from vlmodel.part_configs import Vocabulary
    from vlmodel.parts import Decoder
    from vlmodel.processor import VLProcessor

MATCH, NO_MATCH = "match", "no match"
"""The answers."""

CLASSES = (NO_MATCH, MATCH)

MATCHES = frozenset({MATCH, "matched", "yes", "true", "1", "entailment", "entailed"})
"""Answers that mean that a text belongs to its image, in lower case; all others mean that it does not."""


class MatchByClass(MatchOperation):
    """Computes the probability that each text belongs to the image, by the matching classifier."""

    def run(self, predictor: Predictor, task: str, items: Sequence[BatchedRequest]) -> list[MatchResult]:
        predictions = predictor.predict([item.example for item in items], top_k=2, task=task)
        return [
            MatchResult.from_predictions(
                of_item, method="matching", probabilities=[dict(p.answers)[MATCH] for p in of_item]
            )
            for of_item in predictions
        ]


class Config(ClassificationTask):
    """Settings of a classifier with two classes on the pooled joint vector, as in ViLBERT (Lu et al. 2019) and later
    models.

    Labelled statements, as those of NLVR or SNLI-VE, are questions with answers such as "yes" or "entailment"
    (``MATCHES``). Pairs of which it is unknown whether they match count nowhere.
    """

    invariances: ClassVar[frozenset[str]] = frozenset({"case", "punctuation"})
    operations: ClassVar[tuple[Operation, ...]] = (MatchByClass(),)

    kind: Literal["matching"] = "matching"
    pairs: Literal["captions", "questions"] = "captions"
    """"captions" are paired with their own image and another of the batch; "questions" are statements with answers."""

    @property
    def learning_requirement(self) -> str:
        return f"{self.pairs} with an input"

    def compatibility_key(self) -> dict[str, Any]:
        return super().compatibility_key() | {"pairs": self.pairs}

    def can_answer(self, present: frozenset[str]) -> bool:
        return self.pairs in present and bool(present - TEXTS)

    def training_rows(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        return _matching_rows(samples) if self.pairs == "captions" else question_rows(samples)

    def texts_to_read(self, texts: SampleTexts) -> Iterable[str]:
        return captions_of(texts) if self.pairs == "captions" else questions_of(texts)

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> Decoder:
        return self.build_classifier(widths["joint"], len(CLASSES), counts_unknown=False)

    def class_names(self, processor: VLProcessor) -> Sequence[str]:
        return CLASSES

    def class_id(self, answer: str, processor: VLProcessor) -> int:
        return int(is_match(answer))

    def score_rows(self, answered: AnsweredRows, normalizer: Normalizer) -> ExampleScores:
        """Score each right decision 1; the two classes are two groups, so that they count equally."""
        row_N = np.array([n for n, target in enumerate(answered.targets) if target is not None], np.int64)
        group_N = np.array([is_match(answered.targets[n] or "") for n in row_N], np.int64)
        right_N = group_N == np.array([answered.predicted[n] == MATCH for n in row_N])
        return ExampleScores(right_N.astype(np.float64), group_N, answered.sample_N[row_N], row_N, binary=True)

    def judge_answers(
        self, answered: AnsweredRows, baseline: Mapping[str, Any] | None, labels: Sequence[str], normalizer: Normalizer
    ) -> Judgement:
        """Compute the balanced accuracy, the area under the ROC curve, and calibration."""
        pairs = rows_with_target(answered, "pair")
        metrics, constant = _matching_metrics(pairs)
        both = "balanced_accuracy" in metrics
        only_matches = not both and is_match(pairs.targets[0] or "")
        compared = BaselineComparisons(
            pairs, lambda given: _matching_metrics(given)[0], partial(self.score_rows, normalizer=normalizer)
        )
        answer = MATCH if both or only_matches else NO_MATCH
        compared.add_baseline("constant", "one answer for all pairs", [answer] * len(pairs), constant)
        shuffled = zip(pairs.targets, pairs.shuffled, strict=True)
        if len({is_match(target or "") for target, other in shuffled if other is not None}) == 2:
            compared.add_shuffled_baseline()
        one_class = (
            f"every pair is {'a match' if only_matches else 'no match'}, so only accuracy can be said; captions meet "
            "another image of their batch: raise predict.batch above 1, or choose a split with more images"
        )
        metric = "balanced_accuracy" if both else "accuracy"
        return compared.to_judgement("pairs", metric, metrics, [] if both else [one_class])

    def rows_for_examples_page(self, answered: AnsweredRows, normalizer: Normalizer) -> list[ExampleAnswer]:
        return example_answers(answered, lambda target, best: is_match(target) == (best == MATCH))


def is_match(answer: str) -> bool:
    """Whether an answer says that a text belongs to its image."""
    return answer.strip().lower() in MATCHES


def _matching_metrics(answered: AnsweredRows) -> tuple[Metrics, Metrics]:
    """Compute the model's metrics, and those of a constant answer."""
    from vlmodel.metrics.matching import matching_scores

    # Of the better of the two answers.
    given = zip(answered.predicted, np.clip(answered.probability, 0, 1).tolist(), strict=True)
    probabilities = [p if answer == MATCH else 1 - p for answer, p in given]
    return split_baseline_metrics(
        matching_scores(probabilities, [is_match(target or "") for target in answered.targets])
    )


def _matching_rows(samples: Sequence[Sample]) -> list[list[TaskRow]]:
    """Pair each caption with its own image; as many captions of other images of the batch, taken in turn, are
    negatives.

    So half of the rows match, unless images share captions. The negatives depend on the batch alone, and a text is
    encoded once, however many rows use it. There are none in a batch where one image alone has captions.
    """
    all_rows: list[list[TaskRow]] = []
    for i, sample in enumerate(samples):
        own = sample.texts.captions
        others = [o.texts.captions for o in (*samples[i + 1 :], *samples[:i]) if o.texts.captions]
        turns = [(j, others[j % len(others)]) for j in range(len(own) if others else 0)]
        negatives = [captions[j % len(captions)] for j, captions in turns]
        all_rows.append([*(TaskRow(c, MATCH) for c in own), *(TaskRow(c, NO_MATCH) for c in negatives if c not in own)])
    return all_rows
