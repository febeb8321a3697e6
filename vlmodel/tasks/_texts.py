"""The texts of a sample that tasks read, write and choose among, and the rows that questions make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlmodel.sample import Sample, SampleTexts
from vlmodel.task import TaskRow


def captions_of(texts: SampleTexts) -> Iterable[str]:
    """The captions."""
    return texts.captions


def questions_of(texts: SampleTexts) -> Iterable[str]:
    """The questions without their answers."""
    return (question.question for question in texts.questions)


def answers_of(texts: SampleTexts) -> Iterable[str]:
    """The known answers."""
    return (question.answer for question in texts.questions if question.answer is not None)


def question_rows(samples: Sequence[Sample]) -> list[list[TaskRow]]:
    """Each question with its answer, and with all that annotators gave."""
    return [
        [
            TaskRow(q.question, q.answer, q.answers or ((q.answer,) if q.answer is not None else ()), q.id)
            for q in sample.texts.questions
        ]
        for sample in samples
    ]
