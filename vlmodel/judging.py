"""Data classes of evaluation: a model's answers to rows, and the metrics, scores and baselines that a task computes of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmodel.errors import ExpectedError
from vlmodel.metrics.scores import ExampleScores
from vlmodel.task import TaskRow

Metrics = dict[str, float]


class NoScorableRowsError(ExpectedError, ValueError):
    """None of the rows has a right answer, so there is nothing to score.

    Attributes:
        unit: what the rows are.
        lacking: what none of them has.
    """

    def __init__(self, unit: str, lacking: str) -> None:
        super().__init__(f"no {unit} has {lacking}")
        self.unit, self.lacking = unit, lacking


@dataclass(frozen=True)
class AnsweredRows:
    """N rows of a task, with a model's answers to them.

    Attributes:
        sample_N: number of the row's sample.
        rows: what was asked, and the right answers.
        predicted, probability: the best answer to each, and its probability or score.
        ranked: the best answers to each.
        shuffled, shuffled_probability: the best answer about the inputs of another sample; None where it was not asked.
        image_embedding, text_embedding: of tasks that embed; the image's with the first row of each sample.
        neighbours: texts of those training samples whose image is nearest, the nearest first; None where that is
            unknown.
    """

    sample_N: NDArray[np.int64]
    rows: Sequence[TaskRow]
    predicted: Sequence[str]
    probability: Sequence[float]
    ranked: Sequence[Sequence[str]]
    shuffled: Sequence[str | None]
    shuffled_probability: Sequence[float | None]
    image_embedding: Sequence[Any]
    text_embedding: Sequence[Any]
    neighbours: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self.rows]

    @property
    def targets(self) -> list[str | None]:
        return [row.target for row in self.rows]

    def select_rows(self, chosen: Sequence[int] | NDArray[np.int64]) -> AnsweredRows:
        """Return a copy with only the chosen rows."""
        at = [int(row) for row in chosen]
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "sample_N"}
        lists = {name: [values[row] for row in at] for name, values in columns.items() if values is not None}
        return AnsweredRows(self.sample_N[at], **lists)

    def replace_answers(self, predicted: Sequence[str], probability: Sequence[float] | None = None) -> AnsweredRows:
        """Return a copy of the rows with other answers of the model."""
        return replace(self, predicted=predicted, probability=self.probability if probability is None else probability)


@dataclass(frozen=True)
class BaselineScores:
    """The scores of a baseline and of the model on the same rows.

    Attributes:
        name, description: of the baseline.
        metrics: the baseline's, all of the model's or some.
        scores, model_scores: of both on the same rows.
        model_metrics: the model's on those rows, if they are not all.
        looks: the baseline looks at the input, as one that copies from similar images: the gate does not count it.
    """

    name: str
    description: str
    metrics: Metrics
    scores: ExampleScores
    model_scores: ExampleScores
    model_metrics: Metrics | None = None
    looks: bool = False


@dataclass(frozen=True)
class Judgement:
    """The result of evaluating a model's answers at one task: metrics, the score of each row, baselines.

    Attributes:
        unit: what the rows are, in the plural: questions, images, pairs.
        rows: number of those that counted.
        metric: name of the metric by which models are compared; higher is better.
        metrics: all of them.
        scores: per example, whose ``value`` is that metric.
        baselines: what is reached without looking, or by copying.
        notes: remarks for the reader.
        by_answer: for each right answer its number of rows and its accuracy, most frequent first; empty where answers
            are no classes.
    """

    unit: str
    rows: int
    metric: str
    metrics: Metrics
    scores: ExampleScores
    baselines: Sequence[BaselineScores] = ()
    notes: Sequence[str] = ()
    by_answer: Sequence[tuple[str, int, float]] = ()


@dataclass(frozen=True)
class ExampleAnswer:
    """One row with its right answer and the model's, to be shown on the page of examples.

    Attributes:
        row: its number.
        title: text above the picture.
        answer: the right answer; for captions one that people gave.
        predicted, probability: the best answer.
        right: whether it is right; None where that is no question of right and wrong.
    """

    row: int
    title: str
    answer: str
    predicted: str
    probability: float
    right: bool | None
