"""The base class of tasks that answer questions, by choosing or by generating the answer: how answers are scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from vlmodel.answers import Normalizer, answers_match, normalize_for_comparison
from vlmodel.judging import AnsweredRows, ExampleAnswer, Judgement, Metrics
from vlmodel.metrics.answer_prior import AnswerPrior
from vlmodel.metrics.scores import ExampleScores
from vlmodel.operations.ask import VQAOperation
from vlmodel.operations.base import Operation
from vlmodel.sample import Sample, SampleTexts
from vlmodel.task import Task, TaskRow
from vlmodel.tasks._judging import BaselineComparisons, example_answers, rows_with_target
from vlmodel.tasks._right_answers import accuracy_by_answer, score_right_answers, top_k_accuracy
from vlmodel.tasks._texts import question_rows, questions_of


class QuestionTask(Task):
    """A task that answers questions in words: defines its rows and how its answers are scored."""

    learns_baseline: ClassVar[bool] = True
    operations: ClassVar[tuple[Operation, ...]] = (VQAOperation(),)
    invariances: ClassVar[frozenset[str]] = frozenset({"case", "punctuation", "politeness"})

    @property
    def learning_requirement(self) -> str:
        return "questions"

    def can_answer(self, present: frozenset[str]) -> bool:
        return "questions" in present

    def training_rows(self, samples: Sequence[Sample]) -> list[list[TaskRow]]:
        return question_rows(samples)

    def texts_to_read(self, texts: SampleTexts) -> Iterable[str]:
        return questions_of(texts)

    def learn_baseline(self, samples: Iterable[SampleTexts], normalizer: Normalizer) -> dict[str, Any]:
        """Learn the most frequent answer to each question (``AnswerPrior``)."""
        questions = (question for texts in samples for question in texts.questions)
        pairs = ((one.question, one.answer) for one in questions if one.answer is not None)
        return AnswerPrior.learn(pairs, normalizer).to_dict()

    def score_rows(self, answered: AnsweredRows, normalizer: Normalizer) -> ExampleScores:
        """Score each right answer 1 and each wrong one 0."""
        return score_right_answers(answered, normalizer)

    def rows_for_examples_page(self, answered: AnsweredRows, normalizer: Normalizer) -> list[ExampleAnswer]:
        return example_answers(answered, lambda target, best: answers_match([target], [best], normalizer)[0])

    def judge_answers(
        self, answered: AnsweredRows, baseline: Mapping[str, Any] | None, labels: Sequence[str], normalizer: Normalizer
    ) -> Judgement:
        """Compute accuracy, agreement with several annotators, and calibration."""
        from vlmodel.metrics.calibration import calibration_error

        assert baseline is not None
        known = rows_with_target(answered, "question")
        targets = [target or "" for target in known.targets]
        right = answers_match(targets, known.predicted, normalizer)
        metrics_of = partial(
            self._answer_metrics, annotated=any(len(row.references) > 1 for row in known.rows), by=normalizer
        )
        metrics = metrics_of(known) | top_k_accuracy(known, targets, labels, normalizer)
        metrics |= calibration_error(np.clip(known.probability, 0, 1).tolist(), right)
        prior = AnswerPrior(**baseline)
        compared = BaselineComparisons(known, metrics_of, partial(self.score_rows, normalizer=normalizer))
        compared.add_baseline("majority", f'always "{prior.majority}"', [prior.majority] * len(known))
        compared.add_baseline("question_only", "the question alone", prior.predict(known.texts))
        compared.add_shuffled_baseline()
        forms = [normalize_for_comparison(target, normalizer) for target in targets]
        notes = [f"{sum(right)} of {len(right)} questions answered right"]
        classes = {normalize_for_comparison(label, normalizer) for label in labels}
        if unknown := sum(bool(labels) and form not in classes for form in forms):
            notes.append(f"{unknown} right answers are outside the model's vocabulary and count as wrong")
        return compared.to_judgement("questions", "accuracy", metrics, notes, accuracy_by_answer(forms, right))

    def _answer_metrics(self, answered: AnsweredRows, annotated: bool, by: Normalizer) -> Metrics:
        from vlmodel.metrics.answers import vqa_accuracy

        metrics = {"accuracy": self.score_rows(answered, by).metric_value}
        if annotated:
            metrics |= vqa_accuracy(answered.predicted, [row.references for row in answered.rows])
        return metrics
