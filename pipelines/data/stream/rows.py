"""From samples to the rows of a task: what it learns from, and what it is asked and judged by.

A sample without an image makes rows only for the tasks that need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from vlmodel.processor import Example
from vlmodel.sample import Sample
from vlmodel.task_spec import MATCH, NO_MATCH, TaskSpec

R = TypeVar("R")


@dataclass(frozen=True)
class Row:
    """One row to be answered.

    Attributes:
        key, split: of the sample; samples of different splits may share a key.
        text: the model's input; "" where the task takes no text.
        target: the right answer, None where it is unknown or there is none.
        references: every right answer there is: all captions of the image, all annotators' answers.
        id: the source's identifier of a question.
    """

    key: str
    split: str
    text: str
    target: str | None
    references: tuple[str, ...]
    id: str | None


def to_examples(records: Sequence[Sample], spec: TaskSpec, weight: float = 1.0) -> list[Example]:
    """The rows that a task learns from, for each sample of a batch."""
    return [
        Example(
            record.inputs,
            tuple(text for text, _ in rows),
            tuple(target for _, target in rows),
            (weight,) * len(rows),
        )
        for record, rows in zip(records, _drop_without_image(_training_rows(records, spec), records, spec), strict=True)
    ]


def rows_to_answer(records: Sequence[Sample], spec: TaskSpec) -> list[list[Row]]:
    """The rows that a task is to answer, for each sample of a batch; one an image where the task takes no text."""
    return _drop_without_image(_rows_to_answer(records, spec), records, spec)


def _drop_without_image(rows: list[list[R]], records: Sequence[Sample], spec: TaskSpec) -> list[list[R]]:
    if not spec.needs_image:
        return rows
    return [of_record if "image" in record.present else [] for of_record, record in zip(rows, records, strict=True)]


def _rows_to_answer(records: Sequence[Sample], spec: TaskSpec) -> list[list[Row]]:
    if spec.reads == "questions":
        return [
            [
                Row(
                    r.key, r.split, q.question if spec.text else "", q.answer,
                    q.answers or ((q.answer,) if q.answer is not None else ()), q.id,
                )
                for q in r.texts.questions
            ]
            for r in records
        ]  # fmt: skip
    if not spec.text:
        return [[Row(r.key, r.split, "", next(iter(r.texts.captions), None), r.texts.captions, None)] for r in records]
    if spec.target == "match":
        return [
            [Row(r.key, r.split, text, target, (), None) for text, target in rows]
            for r, rows in zip(records, _matching_rows(records), strict=True)
        ]
    return [[Row(r.key, r.split, caption, None, (), None) for caption in r.texts.captions] for r in records]


def _training_rows(records: Sequence[Sample], spec: TaskSpec) -> list[list[tuple[str, str | None]]]:
    if spec.reads == "questions":
        return [[(q.question if spec.text else "", q.answer) for q in r.texts.questions] for r in records]
    if spec.target == "match":
        return _matching_rows(records)
    return [
        [(c if spec.text else "", c if spec.target == "tokens" else None) for c in r.texts.captions] for r in records
    ]


def _matching_rows(records: Sequence[Sample]) -> list[list[tuple[str, str | None]]]:
    """Each caption with its own image, and as many captions of other images of the batch, taken in turn.

    So half of the rows match, unless images share captions. The negatives depend on the batch alone, and a text is
    encoded once, however many rows use it. There are none in a batch where one image alone has captions.
    """
    all_rows: list[list[tuple[str, str | None]]] = []
    for i, record in enumerate(records):
        own = record.texts.captions
        others = [o.texts.captions for o in (*records[i + 1 :], *records[:i]) if o.texts.captions]
        turns = [(j, others[j % len(others)]) for j in range(len(own) if others else 0)]
        negatives = [captions[j % len(captions)] for j, captions in turns]
        all_rows.append([*((c, MATCH) for c in own), *((c, NO_MATCH) for c in negatives if c not in own)])
    return all_rows
