"""A whole assessment of a model on one split: its answers, their score beside the floors, examples and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.data.corpus import read_texts
from pipelines.data.index import Index
from pipelines.data.loader import Source
from pipelines.data.stream import StreamConfig
from pipelines.evaluate.examples import choose, illustrate, image_of
from pipelines.evaluate.floors import Floors
from pipelines.evaluate.predict import PredictConfig, collect, predict
from pipelines.evaluate.score import Report, score
from pipelines.train import pictures
from pipelines.train.tracking import NullTracker
from vlmodel.inference import Predictor


@dataclass(frozen=True)
class Assessment:
    """What an assessment found.

    Attributes:
        report: the figures.
        answers: a row for each text (predict.SCHEMA).
        page: rows for ``pictures.examples_page``.
        example: an encoded image and a question about it.
    """

    report: Report
    answers: pa.Table
    page: list[dict[str, Any]] = field(repr=False)
    example: tuple[bytes, str] | None = field(repr=False)


def assess(
    model: str, source: Source, index: Index, config: PredictConfig, stream: StreamConfig, examples: int
) -> Assessment:
    """Answer all texts of ``source`` with the model in folder ``model`` and judge the answers.

    The floors are learned from the training split of ``index``.
    """
    answers = pa.concat_tables(list(collect(predict(model, source, config, stream))))
    questions = (question for texts in read_texts(index, "train") for question in texts.questions)
    floors = Floors.learn((q.question, q.answer) for q in questions if q.answer is not None)
    predictor = Predictor.from_pretrained(model)
    report = score(answers, source.split or "all", floors, predictor.processor.labels)
    page = illustrate(choose(answers, examples), index, predictor)
    first = answers.slice(0, 1).to_pylist()[0]
    return Assessment(report, answers, page, (image_of(first["key"], index), first["question"]))


def show(found: Assessment, tracker: NullTracker, history: Sequence[Mapping[str, float]] = ()) -> None:
    """Record the pictures and tables with the run."""
    split = found.report.split
    floors = {name.replace("_", " "): value for name, value in found.report.floors.items()}
    if history:
        tracker.log_figure(pictures.curves(history, floors), "pictures/curves.png")
    pairs = [(t, p) for t, p in zip(*(found.answers[c].to_pylist() for c in ("answer", "predicted")), strict=True) if t]
    tracker.log_figure(
        pictures.confusion([t for t, _ in pairs], [p for _, p in pairs]), f"pictures/{split}-confusion.png"
    )
    if found.page:
        tracker.log_figure(pictures.examples_page(found.page), f"pictures/{split}-examples.png")
    rows = [{"answer": a, "questions": n, "accuracy": round(hit, 6)} for a, n, hit in found.report.by_answer]
    tracker.log_table(rows, f"tables/{split}-answers.csv")
    tracker.log_text(f"{found.report}\n", f"tables/{split}-report.txt")
