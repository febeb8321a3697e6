"""Chooses examples for a page: some right and some wrong answers, each with its image, or else a picture of its other
inputs, and the model's attention to it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.data.index.index import Index
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from pipelines.evaluate.answered import parse_answered_rows
from pipelines.report.example_card import ExampleCard
from pipelines.report.input_pictures import draw_inputs
from vlmodel.answers import Normalizer
from vlmodel.encoder_parts import IMAGE
from vlmodel.judging import ExampleAnswer
from vlmodel.processor import Example
from vlmodel.task import Task

if TYPE_CHECKING:
    from vlmodel.inference import Predictor


_HELD_OUT_FIRST = ("val", "test", "train")


@dataclass(frozen=True)
class ExampleRow:
    """A row of a table of answers that is shown on the page of examples.

    Attributes:
        key, split: of the sample.
        text: of the request.
        answer: what the page shows of it.
    """

    key: str
    split: str
    text: str
    answer: ExampleAnswer


def choose_examples(
    answers: pa.Table, task: Task, count: int, seed: int = 0, normalizer: Normalizer = "none"
) -> list[ExampleRow]:
    """Choose up to ``count`` rows of a table of answers, half of them answered wrong if there are enough; the same rows
    for the same table.
    """
    columns = {name: answers[name].to_pylist() for name in ("key", "split", "text")}
    rows = [
        ExampleRow(columns["key"][answer.row], columns["split"][answer.row], columns["text"][answer.row], answer)
        for answer in task.rows_for_examples_page(parse_answered_rows(answers), normalizer)
    ]
    rng = random.Random(seed)
    wrong = [row for row in rows if row.answer.right is False]
    others = [row for row in rows if row.answer.right is not False]
    some_wrong = rng.sample(wrong, min(len(wrong), count // 2))
    return some_wrong + rng.sample(others, min(len(others), count - len(some_wrong)))


def make_example_cards(rows: list[ExampleRow], index: Index, predictor: Predictor, task: str = "") -> list[ExampleCard]:
    """Make cards for the page of examples: the decoded image, or of a sample without one a picture of its other inputs
    (``draw_inputs``), with the attention for the answer. A sample without inputs has no card.
    """
    processor = predictor.processor
    inputs_of = _read_inputs({(row.split, row.key) for row in rows}, index, {IMAGE, *processor.input_names})
    cards = []
    for row in rows:
        if not (inputs := inputs_of[row.split, row.key]):
            continue
        ((prediction,),) = predictor.predict([Example(inputs, (row.text,))], 1, attention=True, task=task)
        picture = (
            processor.decode_image(inputs[IMAGE])
            if IMAGE in inputs
            else draw_inputs(inputs, processor.media, prediction.attention_T)
        )
        shown = {name: getattr(row.answer, name) for name in ("title", "answer", "predicted", "probability", "right")}
        cards.append(ExampleCard(picture, **shown, attention_HW=prediction.attention_HW))
    return cards


def inputs_of_sample(key: str, index: Index, names: Collection[str], split: str = "") -> Mapping[str, bytes]:
    """Read the named inputs that a sample has, still encoded.

    Args:
        split: of the sample; "" looks in the validation, test and training split, in this order, as samples of
            different splits may have the same key.

    Raises:
        DataError: there is no such sample, or it has none of these inputs.
    """
    splits = (split,) if split else _HELD_OUT_FIRST
    inputs_of = _read_inputs({(name, key) for name in splits}, index, names)
    for name in splits:
        if inputs := inputs_of.get((name, key)):
            return inputs
    raise DataError(
        f"the index of {index.tars} has no {' or '.join(names)} of sample {key!r}"
        f"{f' in split {split!r}' if split else ''}"
    )


def _sample_ids(answers: pa.Table) -> list[tuple[str, str]]:
    """Return the (split, key) of each row."""
    return list(zip(answers["split"].to_pylist(), answers["key"].to_pylist(), strict=True))


def _read_inputs(
    samples: set[tuple[str, str]], index: Index, names: Collection[str]
) -> dict[tuple[str, str], Mapping[str, bytes]]:
    """Read the named inputs of those (split, key) pairs that the index has."""
    reader, found = ShardReader(index), dict[tuple[str, str], Mapping[str, bytes]]()
    for shard in index.shards:
        if len(found) == len(samples):
            break
        rows = [row for row, sample in enumerate(_sample_ids(index.rows(shard.name))) if sample in samples]
        records = reader.read(shard.name, rows, inputs=names, texts=False)
        found |= {(record.split, record.key): record.inputs for record in records}
    return found
