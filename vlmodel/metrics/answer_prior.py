"""A baseline of question answering that ignores the image: it gives the most frequent training answer to the same
question.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vlmodel.answers import Normalizer, normalize_for_comparison


@dataclass(frozen=True)
class AnswerPrior:
    """Answers each question by its most frequent answer in the training data, ignoring the image.

    Attributes:
        majority: the most frequent answer.
        by_question: the most frequent answer to each exact question; other questions get ``majority``.
    """

    majority: str
    by_question: dict[str, str]

    @classmethod
    def learn(cls, pairs: Iterable[tuple[str, str]], normalizer: Normalizer = "none") -> AnswerPrior:
        """Learn the most frequent answers from (question, answer) pairs. Of equally frequent answers the alphabetically
        first is used.

        Args:
            normalizer: answers with the same normal form are one answer, in its most frequent spelling.

        Raises:
            ValueError: there are none.
        """
        spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
        to_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in pairs:
            form = normalize_for_comparison(answer, normalizer)
            spellings[form][answer] += 1
            to_question[question][form] += 1
        if not spellings:
            raise ValueError("no answered question to learn from; the training split needs at least one")
        spelling = {form: _most_frequent(counts) for form, counts in spellings.items()}
        forms = Counter({form: counts.total() for form, counts in spellings.items()})
        by_question = {question: spelling[_most_frequent(counts)] for question, counts in to_question.items()}
        return cls(spelling[_most_frequent(forms)], by_question)

    def predict(self, questions: Sequence[str]) -> list[str]:
        """Return the most frequent training answer to each question, or the overall most frequent one for a new
        question.
        """
        return [self.by_question.get(question, self.majority) for question in questions]

    def to_dict(self) -> dict[str, Any]:
        """Return the baseline as plain values. Questions whose answer is the overall most frequent one are left out."""
        others = {question: answer for question, answer in self.by_question.items() if answer != self.majority}
        return {"majority": self.majority, "by_question": others}


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))
