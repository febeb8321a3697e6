"""Selects the texts of a sample that tasks read, generate and choose among, and makes rows of its questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlmodel.sample import Sample, SampleTexts
from vlmodel.task import TaskRow


def captions_of(texts: SampleTexts) -> Iterable[str]:
    """List the captions of a sample."""
    return texts.captions


def questions_of(texts: SampleTexts) -> Iterable[str]:
    """List the questions of a sample, without their answers."""
    return (question.question for question in texts.questions)


def answers_of(texts: SampleTexts) -> Iterable[str]:
    """List the known answers to the questions of a sample."""
    return (question.answer for question in texts.questions if question.answer is not None)


def question_rows(samples: Sequence[Sample]) -> list[list[TaskRow]]:
    """Make a row of each question, with its answer and all answers that annotators gave."""
    return [
        [
            TaskRow(q.question, q.answer, q.answers or ((q.answer,) if q.answer is not None else ()), q.id)
            for q in sample.texts.questions
        ]
        for sample in samples
    ]
