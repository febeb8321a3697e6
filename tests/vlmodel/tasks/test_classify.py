"""How classes are judged: worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vlmodel.judging import AnsweredRows, NoScorableRowsError
from vlmodel.sample import SampleTexts
from vlmodel.task import TaskRow
from vlmodel.tasks.classify import Config

TASK = Config()


def answered(targets: list[str | None], predicted: list[str]) -> AnsweredRows:
    count = len(targets)
    return AnsweredRows(
        np.arange(count), [TaskRow(target=target) for target in targets], predicted, [0.9] * count,
        [[best] for best in predicted], ["b"] * count, [0.5] * count, [None] * count, [None] * count,
    )  # fmt: skip


def test_accuracy_over_samples_and_over_classes_beside_the_floors() -> None:
    given = answered(["a", "a", "a", "b", None], ["a", "a", "b", "b", "a"])
    judged = TASK.judge_answers(given, {"majority": "a"}, ["a", "b"], "none")
    assert (judged.unit, judged.rows, judged.metric) == ("samples", 4, "accuracy")
    assert judged.metrics["accuracy"] == 3 / 4
    assert judged.metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert judged.metrics["ece"] == pytest.approx(0.15)
    assert judged.by_answer == (("a", 3, pytest.approx(2 / 3)), ("b", 1, 1.0))
    floors = {baseline.name: baseline.metrics for baseline in judged.baselines}
    assert floors["majority"] == {"accuracy": 3 / 4, "balanced_accuracy": 0.5}
    assert floors["image_shuffled"]["accuracy"] == 1 / 4
    assert judged.scores.metric_value == 3 / 4


def test_classes_are_compared_letter_by_letter() -> None:
    assert TASK.normalizer == "none"
    assert TASK.score_rows(answered(["The a", "1"], ["a", "one"]), "none").metric_value == 0


def test_what_cannot_be_judged_or_learned() -> None:
    with pytest.raises(NoScorableRowsError):
        TASK.judge_answers(answered([None], ["a"]), {"majority": "a"}, ["a", "b"], "none")
    with pytest.raises(ValueError, match="no sample has a class"):
        TASK.learn_baseline([SampleTexts(("a caption",))], "none")
    learned = TASK.learn_baseline(
        [SampleTexts(label="b"), SampleTexts(label="a"), SampleTexts(label="b"), SampleTexts()], "none"
    )
    assert learned == {"majority": "b"}
