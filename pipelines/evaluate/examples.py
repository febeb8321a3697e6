"""Examples for a page: some right and some wrong answers, each with its image and the attention over it."""

from __future__ import annotations

import random
from dataclasses import dataclass

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
_MAX_CAPTIONS = 2000


@dataclass(frozen=True)
class ExampleRow:
    """A row of a table of answers that is chosen for the page.

    Attributes:
        key, split: of the sample.
        text: of the request.
        title: text above the picture.
        answer: the right answer; for captions one that people gave.
        predicted, probability: the best answer.
        right: whether it is right; None for captions.
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
    answers: pa.Table, spec: TaskSpec, count: int, seed: int = 0, normalizer: Normalizer = "none"
) -> list[ExampleRow]:
    """Up to ``count`` rows, half of them wrong if there are so many; the same for the same table."""
    rows = _retrieved_rows(answers) if spec.target == "none" else _answered_rows(answers, spec, normalizer)
    rng = random.Random(seed)
    wrong = [row for row in rows if row.right is False]
    others = [row for row in rows if row.right is not False]
    some_wrong = rng.sample(wrong, min(len(wrong), count // 2))
    return some_wrong + rng.sample(others, min(len(others), count - len(some_wrong)))


def make_cards(rows: list[ExampleRow], index: Index, predictor: Predictor, task: str = "") -> list[Card]:
    """Cards for ``training_pictures.examples_page``: the decoded image with the attention for the answer."""
    images = _read_images({(row.split, row.key) for row in rows}, index)
    cards = []
    for row in rows:
        image = images[row.split, row.key]
        ((prediction,),) = predictor.predict([Example({"image": image}, (row.text,))], 1, attention=True, task=task)
        shown = {name: getattr(row, name) for name in ("title", "answer", "predicted", "probability", "right")}
        cards.append(Card(predictor.processor.decode_image(image), **shown, attention_HW=prediction.attention_HW))
    return cards


def image_bytes(key: str, index: Index, split: str = "") -> bytes:
    """The encoded image of a sample.

    Args:
        split: of the sample; "" looks in the validation, test and training split, in this order, as samples of
            different splits may have the same key.

    Raises:
        DataError: there is no such sample.
    """
    splits = (split,) if split else _HELD_OUT_FIRST
    images = _read_images({(name, key) for name in splits}, index)
    for name in splits:
        if (name, key) in images:
            return images[name, key]
    raise DataError(f"the index of {index.tars} has no sample {key!r}{f' of split {split!r}' if split else ''}")


def _answered_rows(answers: pa.Table, spec: TaskSpec, normalizer: Normalizer) -> list[ExampleRow]:
    answered = answers.filter(pc.is_valid(answers["target"]))
    rows = []
    columns = (answered[name].to_pylist() for name in ("key", "split", "text", "target", "predicted", "probability"))
    for key, split, text, target, predicted, probability in zip(*columns, strict=True):
        title = text
        right: bool | None = None
        if spec.target == "match":
            right = is_match(target) == (predicted == MATCH)
        elif spec.target == "tokens" and not spec.text:
            title = ""
        else:
            (right,) = answers_match([target], [predicted], normalizer)
        rows.append(ExampleRow(key, split, text, title, target, predicted, probability, right))
    return rows


def _retrieved_rows(answers: pa.Table) -> list[ExampleRow]:
    """For each image the nearest of the first captions; right if it is one of the image's."""
    some = answers.slice(0, _MAX_CAPTIONS)
    first = some.filter(pc.is_valid(some["image_embedding"]))
    image_BD, text_ND = (np.stack(t[c].to_pylist()) for t, c in ((first, "image_embedding"), (some, "text_embedding")))
    similarity_BN = image_BD @ text_ND.T
    samples, texts = _sample_ids(some), some["text"].to_pylist()
    nearest_B = zip(
        _sample_ids(first), first["text"].to_pylist(), similarity_BN.argmax(1), similarity_BN.max(1), strict=True
    )
    title = f"of {len(texts)} captions the nearest"
    return [
        ExampleRow(key, split, own, title, own, texts[n], float(similarity), samples[n] == (split, key))
        for (split, key), own, n, similarity in nearest_B
    ]


def _sample_ids(answers: pa.Table) -> list[tuple[str, str]]:
    """The (split, key) of each row."""
    return list(zip(answers["split"].to_pylist(), answers["key"].to_pylist(), strict=True))


def _read_images(samples: set[tuple[str, str]], index: Index) -> dict[tuple[str, str], bytes]:
    """The images of those (split, key) pairs that the index has."""
    reader, images = ShardReader(index), dict[tuple[str, str], bytes]()
    for shard in index.shards:
        if len(images) == len(samples):
            break
        rows = [row for row, sample in enumerate(_sample_ids(index.rows(shard.name))) if sample in samples]
        images |= {
            (record.split, record.key): record.inputs["image"] for record in reader.read(shard.name, rows, texts=False)
        }
    return images
