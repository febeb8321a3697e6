"""Functions shared by tasks for judging answers: collecting baselines, and the baseline of answers about other samples'
inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from vlmodel.judging import AnsweredRows, BaselineScores, ExampleAnswer, Judgement, Metrics, NoScorableRowsError
from vlmodel.metrics.scores import ExampleScores


class BaselineComparisons:
    """Collects the baselines of an evaluation and builds its ``Judgement``.

    Args:
        answered: the rows that count.
        metrics_of, scores_of: of answered rows.
    """

    def __init__(
        self,
        answered: AnsweredRows,
        metrics_of: Callable[[AnsweredRows], Metrics],
        scores_of: Callable[[AnsweredRows], ExampleScores],
    ) -> None:
        self.answered, self._metrics_of, self._scores_of = answered, metrics_of, scores_of
        self.baselines: list[BaselineScores] = []

    @cached_property
    def model_scores(self) -> ExampleScores:
        return self._scores_of(self.answered)

    def add_baseline(
        self,
        name: str,
        description: str,
        predicted: Sequence[str],
        metrics: Metrics | None = None,
        looks: bool = False,
    ) -> None:
        """Add a baseline to the comparison; it must answer all rows."""
        given = self.answered.replace_answers(predicted)
        metrics = self._metrics_of(given) if metrics is None else metrics
        scores = self._scores_of(given)
        self.baselines.append(BaselineScores(name, description, metrics, scores, self.model_scores, looks=looks))

    def add_shuffled_baseline(self) -> None:
        """Add the baseline of the model's own answers about other samples' images, on the rows that have such
        answers.
        """
        rows = [n for n, answer in enumerate(self.answered.shuffled) if answer is not None]
        if not rows:
            return
        same = self.answered.select_rows(rows)
        shuffled = same.replace_answers(
            [answer or "" for answer in same.shuffled],
            [float("nan") if p is None else p for p in same.shuffled_probability],
        )
        self.baselines.append(
            BaselineScores(
                "image_shuffled",
                "its own answers about other images",
                self._metrics_of(shuffled),
                self._scores_of(shuffled),
                self._scores_of(same),
                self._metrics_of(same) if len(same) < len(self.answered) else None,
            )
        )

    def to_judgement(
        self,
        unit: str,
        metric: str,
        metrics: Metrics,
        notes: Sequence[str] = (),
        by_answer: Sequence[tuple[str, int, float]] = (),
    ) -> Judgement:
        return Judgement(
            unit, len(self.answered), metric, metrics, self.model_scores, self.baselines, tuple(notes), tuple(by_answer)
        )


def rows_with_target(answered: AnsweredRows, unit: str) -> AnsweredRows:
    """Select the rows with a right answer.

    Raises:
        NoScorableRowsError: there is none.
    """
    rows = [n for n, target in enumerate(answered.targets) if target is not None]
    if not rows:
        raise NoScorableRowsError(unit, "a right answer to score against")
    return answered.select_rows(rows)


def split_baseline_metrics(scores: Metrics) -> tuple[Metrics, Metrics]:
    """Split metrics into the model's and those of the baseline, whose names begin with ``floor_``."""
    baseline = {name.removeprefix("floor_"): value for name, value in scores.items() if name.startswith("floor_")}
    return {name: value for name, value in scores.items() if not name.startswith("floor_")}, baseline


def example_answers(
    answered: AnsweredRows, is_right: Callable[[str, str], bool | None], titled: bool = True
) -> list[ExampleAnswer]:
    """Make an example of each row with a right answer; ``is_right`` takes the right answer and the model's."""
    return [
        ExampleAnswer(n, row.text if titled else "", row.target, best, p, is_right(row.target, best))
        for n, (row, best, p) in enumerate(zip(answered.rows, answered.predicted, answered.probability, strict=True))
        if row.target is not None
    ]
