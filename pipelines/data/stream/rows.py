"""From samples to the rows of a task: what it learns from, and what it is asked and judged by.

Texts without an image make rows of the tasks that can do without one; for the others they are no more than captions of
something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipelines.data.tars.reader import Record
from vlmodel.processor import Example
from vlmodel.task_spec import MATCH, NO_MATCH, TaskSpec

R = TypeVar("R")


@dataclass(frozen=True)
class Row:
    """One row to be answered.

    Attributes:
        key, split: of the sample; a key alone may be that of a sample of each split.
        text: what the model is given; "" where the task is given none.
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


def to_examples(records: Sequence[Record], fields: TaskSpec, weight: float = 1.0) -> list[Example]:
    """The rows that a task learns from, for each sample of a batch."""
    return [
        Example(
            record.image,
            tuple(text for text, _ in rows),
            tuple(target for _, target in rows),
            (weight,) * len(rows),
        )
        for record, rows in zip(records, _possible(_learned(records, fields), records, fields), strict=True)
    ]


def rows_to_answer(records: Sequence[Record], fields: TaskSpec) -> list[list[Row]]:
    """The rows that a task is asked, for each sample of a batch: one an image where it is given no text."""
    return _possible(_asked(records, fields), records, fields)


def _possible(rows: list[list[R]], records: Sequence[Record], fields: TaskSpec) -> list[list[R]]:
    """The rows, less those that would be about an image which is not there."""
    if not fields.needs_image:
        return rows
    return [of_record if record.pictured else [] for of_record, record in zip(rows, records, strict=True)]


def _asked(records: Sequence[Record], fields: TaskSpec) -> list[list[Row]]:
    if fields.reads == "questions":
        return [
            [
                Row(r.key, r.split, q.question if fields.text else "", q.answer, q.answers or _known(q.answer), q.id)
                for q in r.texts.questions
            ]
            for r in records
        ]
    if not fields.text:
        return [[Row(r.key, r.split, "", next(iter(r.texts.captions), None), r.texts.captions, None)] for r in records]
    if fields.target == "match":
        return [
            [Row(r.key, r.split, text, target, (), None) for text, target in rows]
            for r, rows in zip(records, _pairs(records), strict=True)
        ]
    return [[Row(r.key, r.split, caption, None, (), None) for caption in r.texts.captions] for r in records]


def _learned(records: Sequence[Record], fields: TaskSpec) -> list[list[tuple[str, str | None]]]:
    if fields.reads == "questions":
        return [[(q.question if fields.text else "", q.answer) for q in r.texts.questions] for r in records]
    if fields.target == "match":
        return _pairs(records)
    return [
        [(c if fields.text else "", c if fields.target == "tokens" else None) for c in r.texts.captions]
        for r in records
    ]


def _pairs(records: Sequence[Record]) -> list[list[tuple[str, str | None]]]:
    """Each caption with its own image, and with that image one of another image of the batch, in turn.

    So half of the rows match, but for captions that both images have. Which captions meet depends on the batch alone,
    and a text is encoded once, however often it is shown. A batch with captions of one image alone has no other.
    """
    found: list[list[tuple[str, str | None]]] = []
    for i, record in enumerate(records):
        own = record.texts.captions
        others = [o.texts.captions for o in (*records[i + 1 :], *records[:i]) if o.texts.captions]
        turns = [(j, others[j % len(others)]) for j in range(len(own) if others else 0)]
        strange = [captions[j % len(captions)] for j, captions in turns]
        found.append([*((c, MATCH) for c in own), *((c, NO_MATCH) for c in strange if c not in own)])
    return found


def _known(answer: str | None) -> tuple[str, ...]:
    return (answer,) if answer is not None else ()
