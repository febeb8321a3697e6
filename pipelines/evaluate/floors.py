"""What is reached without looking: the figures that a model must beat before it has learned anything."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.errors import DataError
from vlmodel.answers import Normalizer, normal_form


@dataclass(frozen=True)
class AnswerPrior:
    """Answers that need no image, learned from the training split.

    Attributes:
        majority: the most frequent answer.
        by_question: the most frequent answer to each exact question; others get ``majority``.
        normalizer: answers with one normal form are one answer, in its most frequent spelling.
    """

    majority: str
    by_question: dict[str, str]
    normalizer: Normalizer = "none"

    @classmethod
    def learn(cls, pairs: Iterable[tuple[str, str]], normalizer: Normalizer = "none") -> AnswerPrior:
        """From (question, answer) pairs. Of equally frequent answers the alphabetically first counts."""
        spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
        to_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in pairs:
            form = normal_form(answer, normalizer)
            spellings[form][answer] += 1
            to_question[question][form] += 1
        if not spellings:
            raise DataError("no answered question to learn from; the training split needs at least one")
        written = {form: _most_frequent(counts) for form, counts in spellings.items()}
        forms = Counter({form: counts.total() for form, counts in spellings.items()})
        by_question = {question: written[_most_frequent(counts)] for question, counts in to_question.items()}
        return cls(written[_most_frequent(forms)], by_question, normalizer)

    def answers(self, questions: pa.ChunkedArray) -> list[str]:
        """The guess at each question from the question alone."""
        return [self.by_question.get(question, self.majority) for question in questions.to_pylist()]

    def to_tree(self) -> dict[str, Any]:
        """As plain values for JSON; questions that have the answer of all others are left out."""
        by_question = {question: answer for question, answer in self.by_question.items() if answer != self.majority}
        return {"majority": self.majority, "by_question": by_question, "normalizer": self.normalizer}


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))
