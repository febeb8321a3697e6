"""Builds the report on a task from the table of its answers, which the task itself judges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import DataError
from pipelines.evaluate.answered import parse_answered_rows
from pipelines.evaluate.baselines import Baselines
from pipelines.evaluate.intervals import confidence_interval
from pipelines.evaluate.neighbours import Neighbours
from pipelines.evaluate.report import TaskReport
from pipelines.evaluate.verdict import compare_with_baseline
from vlmodel.answers import Normalizer
from vlmodel.judging import NoScorableRowsError
from vlmodel.metrics.scores import ExampleScores
from vlmodel.task import Task


def build_report(
    answers: pa.Table,
    split: str,
    task: Task,
    baselines: Baselines,
    labels: Sequence[str] = (),
    normalizer: Normalizer = "none",
    name: str = "",
    neighbours: Neighbours | None = None,
) -> TaskReport:
    """Build the report on a table of a model's answers (``predict.SCHEMA``).

    Args:
        labels: the answers that a classifier chooses among.
        normalizer: rules by which answers in words are compared.
        name: of the task.
        neighbours: texts of the training images that are nearest to each image.

    Raises:
        DataError: no row has a right answer.
    """
    answered = parse_answered_rows(answers, neighbours)
    try:
        judged = task.judge_answers(answered, baselines.tasks.get(name), labels, normalizer)
    except NoScorableRowsError as error:
        raise DataError(f"no {error.unit} of split {split!r} has {error.lacking}; choose another split") from None
    notes = list(judged.notes)
    if cut := pc.sum(answers["truncated"]).as_py():
        notes.append(f"{cut} of {answers.num_rows} texts were cut, as they have more tokens than the model takes")
    return TaskReport(
        split=split,
        samples=len(np.unique(answered.sample_N)),
        rows=judged.rows,
        unit=judged.unit,
        metric=judged.metric,
        metrics=judged.metrics,
        baselines={one.name: one.metrics for one in judged.baselines},
        notes=tuple(notes),
        by_answer=list(judged.by_answer),
        interval=confidence_interval(judged.scores),
        comparisons=tuple(
            compare_with_baseline(one.name, one.description, one.model_scores, one.scores, one.looks)
            for one in judged.baselines
        ),
        subset_metrics={one.name: one.model_metrics for one in judged.baselines if one.model_metrics is not None},
    )


def score_examples(answers: pa.Table, task: Task, normalizer: Normalizer = "none") -> ExampleScores:
    """Score those rows of a table of answers (``predict.SCHEMA``) that have a right answer.

    Args:
        normalizer: rules by which answers in words are compared.
    """
    return task.score_rows(parse_answered_rows(answers), normalizer)
