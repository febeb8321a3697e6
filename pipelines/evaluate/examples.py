"""Examples for a page: some right and some wrong answers, each with its image and the attention over it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.index.index import Index
from pipelines.data.tars.reader import ShardReader
from pipelines.errors import DataError
from pipelines.evaluate.example_scores import answers_match
from pipelines.report.training_pictures import Card
from vlmodel.answers import Normalizer
from vlmodel.inference import Predictor
from vlmodel.processor import Example
from vlmodel.task_spec import MATCH, TaskSpec, is_match

_HELD_OUT_FIRST = ("val", "test", "train")


@dataclass(frozen=True)
class ExampleRow:
    """A row of a table of answers that goes on the page.

    Attributes:
        key, split: of the sample.
        text: what the model was given.
        title: what stands over the picture.
        answer: what is right; of captions one that was given by people.
        predicted, probability: the best answer.
        right: whether it is the right one; None where there is no such thing, as with captions.
    """

    key: str
    split: str
    text: str
    title: str
    answer: str
    predicted: str
    probability: float
    right: bool | None


def choose_examples(
    answers: pa.Table, fields: TaskSpec, count: int, seed: int = 0, normalizer: Normalizer = "none"
) -> list[ExampleRow]:
    """Up to ``count`` rows, half of them wrong where there are so many; the same for the same table."""
    if fields.target == "none":
        candidates = _retrieved(answers)
    else:
        answered = answers.filter(pc.is_valid(answers["target"]))
        columns = ("key", "split", "text", "target", "predicted", "probability")
        candidates = [
            _answered(fields, normalizer, *row) for row in zip(*(answered[c].to_pylist() for c in columns), strict=True)
        ]
    rng = random.Random(seed)
    wrong = [row for row in candidates if row.right is False]
    others = [row for row in candidates if row.right is not False]
    some_wrong = rng.sample(wrong, min(len(wrong), count // 2))
    return some_wrong + rng.sample(others, min(len(others), count - len(some_wrong)))


def make_cards(rows: list[ExampleRow], index: Index, predictor: Predictor, task: str = "") -> list[Card]:
    """Cards for ``training_pictures.examples_page``: the image as the model sees it, with the attention on the way to
    the answer.
    """
    images = _images({(row.split, row.key) for row in rows}, index)
    page = []
    for row in rows:
        image = images[row.split, row.key]
        ((prediction,),) = predictor.predict([Example(image, (row.text,))], 1, attention=True, task=task)
        page.append(
            Card(
                image=predictor.processor.decode(image),
                title=row.title,
                answer=row.answer,
                predicted=row.predicted,
                probability=row.probability,
                right=row.right,
                attention_HW=prediction.attention_HW,
            )
        )
    return page


def image_bytes(key: str, index: Index, split: str = "") -> bytes:
    """The encoded image of a sample.

    Args:
        split: of the sample; "" looks in the validation split first, then in the test split, and then in the training
            split, as each of them may have a sample of this key.

    Raises:
        DataError: there is no such sample.
    """
    wanted = {(name, key) for name in ((split,) if split else _HELD_OUT_FIRST)}
    images = _images(wanted, index)
    for name in (split,) if split else _HELD_OUT_FIRST:
        if (name, key) in images:
            return images[name, key]
    raise DataError(f"the index of {index.tars} has no sample {key!r}{f' of split {split!r}' if split else ''}")


def _answered(
    fields: TaskSpec,
    normalizer: Normalizer,
    key: str,
    split: str,
    text: str,
    target: str,
    predicted: str,
    probability: float,
) -> ExampleRow:
    row = ExampleRow(
        key, split, text, text, target, predicted, probability, *answers_match([target], [predicted], normalizer)
    )
    if fields.target == "match":
        return replace(row, right=is_match(target) == (predicted == MATCH))
    if fields.target == "tokens" and not fields.text:
        return replace(row, title="", right=None)
    return row


def _retrieved(answers: pa.Table, captions: int = 2000) -> list[ExampleRow]:
    """For images the caption that is most similar among ``captions`` of them; right where it is one of the image's."""
    some = answers.slice(0, captions)
    first = some.filter(pc.is_valid(some["image_embedding"]))
    image_BD, text_ND = (np.stack(t[c].to_pylist()) for t, c in ((first, "image_embedding"), (some, "text_embedding")))
    similar_BN = image_BD @ text_ND.T
    samples, texts = _samples(some), some["text"].to_pylist()
    rows = zip(_samples(first), first["text"].to_pylist(), similar_BN.argmax(1), similar_BN.max(1), strict=True)
    title = f"of {len(texts)} captions the nearest"
    return [
        ExampleRow(key, split, own, title, own, texts[n], float(value), samples[n] == (split, key))
        for (split, key), own, n, value in rows
    ]


def _samples(answers: pa.Table) -> list[tuple[str, str]]:
    """The (split, key) of each row."""
    return list(zip(answers["split"].to_pylist(), answers["key"].to_pylist(), strict=True))


def _images(samples: set[tuple[str, str]], index: Index) -> dict[tuple[str, str], bytes]:
    """The images of those of the (split, key) pairs that the index has."""
    reader, found = ShardReader(index), dict[tuple[str, str], bytes]()
    for shard in index.shards:
        if len(found) == len(samples):
            break
        rows = [row for row, sample in enumerate(_samples(index.rows(shard.name))) if sample in samples]
        found |= {(record.split, record.key): record.image for record in reader.read(shard.name, rows, texts=False)}
    return found
