"""One table of many trainings: what stands in it, in Markdown and CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from pipelines.search.grid import GridCell
from pipelines.search.results import SearchTrial, TrainingResult
from pipelines.search.table import ablation_table_rows, markdown_table, tuning_table_rows
from pipelines.tracking.tracker import to_csv

CELLS: list[GridCell[Any]] = [
    GridCell("a", {"model.fusion.kind": "concat"}, None),
    GridCell("b", {"model.fusion.kind": "gated"}, None, "no|way"),
    GridCell("c", {"model.fusion.kind": "transformer"}, None),
]
RECORDS = {
    ("a", 0): TrainingResult("finished", score=0.5, parameters=1000, images_per_s=10.0, seconds=2.0),
    ("a", 1): TrainingResult("finished", score=0.7, parameters=1000, images_per_s=30.0, seconds=4.0),
    ("b", 0): TrainingResult("refused", "no|way\nsecond line"),
    ("b", 1): TrainingResult("refused", "no|way\nsecond line"),
    ("c", 0): TrainingResult("finished", score=0.9, parameters=2000, images_per_s=5.0, seconds=8.0),
    ("c", 1): TrainingResult("failed", "boom"),
}


def test_a_row_is_the_mean_of_its_seeds() -> None:
    rows = ablation_table_rows(CELLS, [0, 1], RECORDS, "val accuracy")
    assert [row["fusion"] for row in rows] == ["concat", "gated", "transformer"]
    first = rows[0]
    assert first["val accuracy"] == pytest.approx(0.6)
    assert first["spread"] == pytest.approx(0.2 / 2**0.5)
    assert (first["seed 0"], first["seed 1"], first["parameters"], first["images/s"], first["seconds"]) == (
        0.5, 0.7, 1000, 20.0, 3.0
    )  # fmt: skip
    assert rows[1]["val accuracy"] is None
    assert rows[1]["status"] == "refused: no|way"
    assert (rows[2]["val accuracy"], rows[2]["spread"], rows[2]["status"]) == (0.9, None, "finished; failed: boom")


def test_markdown_is_aligned_and_escaped() -> None:
    lines = markdown_table(ablation_table_rows(CELLS, [0, 1], RECORDS, "val accuracy")).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "| concat      |       0.6000 | 0.1414 | 0.5000 | 0.7000 |      1,000 |" in lines[2]
    assert "no\\|way" in lines[3]
    assert lines[1].startswith("| ----------- | -----------: |")


def test_csv_has_the_numbers_in_full() -> None:
    rows = ablation_table_rows(CELLS, [0, 1], RECORDS, "val accuracy")
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert float(read[0]["spread"]) == rows[0]["spread"]
    assert read[1]["val accuracy"] == ""


def test_the_best_trial_comes_first() -> None:
    trials = [SearchTrial(n, {"train.optimizer.head_lr": 0.1 * n}, "") for n in range(3)]
    records = {
        0: TrainingResult("stopped", score=0.2),
        1: TrainingResult("failed", "boom"),
        2: TrainingResult("finished", score=0.8),
    }
    rows = tuning_table_rows(trials, records, "val accuracy")
    assert [row["trial"] for row in rows] == [3, 1, 2]
    assert rows[0]["optimizer.head_lr"] == "0.2"
    assert [row["status"] for row in rows] == ["finished", "stopped", "failed: boom"]
