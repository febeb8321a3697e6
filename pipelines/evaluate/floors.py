"""What is reached without looking: the figures that a model must beat before it has learned anything."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from pipelines.data.errors import DataError


@dataclass(frozen=True)
class Floors:
    """Answers that need no image, learned from the training split.

    Attributes:
        majority: the most frequent answer.
        by_question: the most frequent answer to each exact question; others get ``majority``.
    """

    majority: str
    by_question: dict[str, str]

    @classmethod
    def learn(cls, pairs: Iterable[tuple[str, str]]) -> Floors:
        """From (question, answer) pairs. Of equally frequent answers the alphabetically first counts."""
        answers: Counter[str] = Counter()
        to_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in pairs:
            answers[answer] += 1
            to_question[question][answer] += 1
        if not answers:
            raise DataError("no answered question to learn from; the training split needs at least one")
        return cls(_most_frequent(answers), {q: _most_frequent(counts) for q, counts in to_question.items()})

    def answers(self, questions: pa.ChunkedArray) -> list[str]:
        """The guess at each question from the question alone."""
        return [self.by_question.get(question, self.majority) for question in questions.to_pylist()]

    def score(self, predictions: pa.Table) -> dict[str, float]:
        """Accuracy of both floors on the answered rows of ``predictions``."""
        pairs = zip(predictions["text"].to_pylist(), predictions["target"].to_pylist(), strict=True)
        answered = [(q, a) for q, a in pairs if a is not None]
        n = max(1, len(answered))
        return {
            "majority": sum(a == self.majority for _, a in answered) / n,
            "question_only": sum(a == self.by_question.get(q, self.majority) for q, a in answered) / n,
        }


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))
