"""Scores and floors, worked by hand."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.evaluate.examples import choose
from pipelines.evaluate.floors import Floors
from pipelines.evaluate.predict import SCHEMA
from pipelines.evaluate.score import score


def answers(*rows: tuple[str, str, str | None, str]) -> pa.Table:
    """(key, question, right answer, predicted) rows; the second best answer is always "no"."""
    return pa.Table.from_pylist(
        [
            {
                "key": key, "question": question, "answer": answer, "id": None, "predicted": predicted,
                "probability": 0.5, "answers": [predicted, "no"], "probabilities": [0.5, 0.3],
            }
            for key, question, answer, predicted in rows
        ],
        schema=SCHEMA,
    )  # fmt: skip


LEARNED = Floors.learn(
    [("is it red?", "yes"), ("is it red?", "yes"), ("how many?", "2"), ("how many?", "1"), ("?", "no")]
)


def test_floors_are_the_most_frequent_answers() -> None:
    assert LEARNED.majority == "yes"
    assert LEARNED.by_question == {"is it red?": "yes", "how many?": "1", "?": "no"}  # of equals the first by name


def test_every_answered_question_counts_and_unknown_ones_do_not() -> None:
    table = answers(
        ("a", "is it red?", "yes", "yes"),
        ("a", "how many?", "2", "1"),
        ("b", "how many?", "1", "1"),
        ("b", "never asked before", "zebra", "yes"),
        ("c", "is it red?", "no", "yes"),
        ("c", "is it blue?", None, "yes"),
    )
    report = score(table, "val", LEARNED, ["yes", "no", "1", "2"])
    assert (report.samples, report.texts, report.correct, report.unknown) == (3, 5, 2, 1)
    assert report.accuracy == pytest.approx(2 / 5)
    assert report.top_k == pytest.approx(3 / 5)
    assert report.floors == {"majority": pytest.approx(1 / 5), "question_only": pytest.approx(2 / 5)}
    assert report.by_answer == [("1", 1, 1.0), ("2", 1, 0.0), ("no", 1, 0.0), ("yes", 1, 1.0), ("zebra", 1, 0.0)]
    assert report.metrics()["val/floor_question_only"] == pytest.approx(2 / 5)
    assert "accuracy 0.4000  (2 of 5 questions, 3 images)" in str(report)
    assert "1 right answers are outside" in str(report)


def test_nothing_to_score_is_said() -> None:
    with pytest.raises(ValueError, match="no question of split 'test' has a right answer"):
        score(answers(("a", "q", None, "yes")), "test", LEARNED, ["yes"])
    with pytest.raises(ValueError, match="no answered question"):
        Floors.learn([])


def test_examples_are_half_wrong_where_there_are_enough() -> None:
    right = [(f"r{n}", "q", "yes", "yes") for n in range(9)]
    wrong = [(f"w{n}", "q", "no", "yes") for n in range(9)]
    chosen = choose(answers(*right, *wrong), 6)
    assert sorted(row["key"][0] for row in chosen) == ["r"] * 3 + ["w"] * 3
    assert chosen == choose(answers(*right, *wrong), 6)
    assert [row["key"][0] for row in choose(answers(*right, wrong[0]), 6)] == ["w"] + ["r"] * 5
