"""The figure that rows add up to is the one that the report gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.evaluate.baselines import Baselines
from pipelines.evaluate.build_report import build_report, score_examples
from tests.pipelines.evaluate.test_build_report import ASKED, CAPTIONED, COMPARED, MATCHED, answers, table
from vlmodel.sample import Question, SampleTexts
from vlmodel.task import Task

TRAINING = [SampleTexts(("a dog runs", "a cat sleeps"), (Question("is it red?", "yes"),))]


def captioned(*rows: tuple[str, str, list[str]]) -> pa.Table:
    return table(
        *(
            {"key": key, "text": "", "target": references[0] if references else None, "references": references,
             "predicted": predicted, "probability": 0.5, "answers": [predicted]}
            for key, predicted, references in rows
        )
    )  # fmt: skip


def compared() -> pa.Table:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for image in range(12):
        for text in range(2):
            embedding = rng.normal(size=4).astype(np.float32).tolist() if text == 0 else None
            rows.append(
                {"key": f"i{image}", "text": f"caption {text}", "references": [], "predicted": "similarity",
                 "image_embedding": embedding, "text_embedding": rng.normal(size=4).astype(np.float32).tolist()}
            )  # fmt: skip
    return table(*rows)


CASES: Sequence[tuple[Task, pa.Table]] = [
    (ASKED, answers(("a", "red?", "yes", "yes"), ("a", "?", None, "no"), ("b", "red?", "no", "yes"))),
    (MATCHED, answers(*((f"k{n}", "a dog", "match" if n < 3 else "no match", "match") for n in range(4)))),
    (
        MATCHED,
        answers(*((f"k{n}", "a dog", "match", "match" if n < 3 else "no match") for n in range(4)), probability=0.6),
    ),
    (CAPTIONED, captioned(("a", "a dog", ["a dog runs", "..."]), ("b", "x", ["?"]), ("c", "a cat", ["the cat sat"]))),
    (CAPTIONED, captioned(("a", "a dog runs", ["a dog runs fast"]), ("b", "x", []), ("c", "a cat", ["the cat sat"]))),
    (COMPARED, compared()),
]


@pytest.mark.parametrize(
    ("fields", "found"), CASES, ids=["answers", "pairs", "one kind", "no words", "captions", "retrieval"]
)
def test_the_mean_of_the_rows_is_the_metric_of_the_report(fields: Task, found: pa.Table) -> None:
    report = build_report(found, "val", fields, Baselines.learn(TRAINING, {"": fields}, "none"))
    assert score_examples(found, fields).metric_value == pytest.approx(report.value, abs=1e-12)
    for comparison in report.comparisons:
        assert comparison.model == pytest.approx(report.value, abs=1e-12)
        assert comparison.baseline == pytest.approx(report.baselines[comparison.name][report.metric], abs=1e-12)


def test_rows_know_their_image_and_their_place_in_the_table() -> None:
    scores_of = score_examples(CASES[0][1], ASKED)
    assert scores_of.score_N.tolist() == [1, 0]
    assert scores_of.image_N.tolist() == [0, 1]
    assert scores_of.row_N.tolist() == [0, 2]
    assert scores_of.select_rows(np.array([False, True, True])).score_N.tolist() == [0]
