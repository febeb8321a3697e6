"""Examples for a page: some right and some wrong answers, each with its image and the attention over it."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.index import Index
from pipelines.data.reader import ShardReader
from vlmodel.inference import Predictor
from vlmodel.processor import Example


def choose(answers: pa.Table, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Up to ``count`` answered rows, half of them wrong where there are so many; the same for the same table."""
    answered = answers.filter(pc.is_valid(answers["answer"]))
    right = pc.equal(answered["answer"], answered["predicted"])
    rng = random.Random(seed)
    wrong_rows = answered.filter(pc.invert(right)).to_pylist()
    right_rows = answered.filter(right).to_pylist()
    wrong = rng.sample(wrong_rows, min(len(wrong_rows), count // 2))
    return wrong + rng.sample(right_rows, min(len(right_rows), count - len(wrong)))


def illustrate(rows: list[dict[str, Any]], index: Index, predictor: Predictor) -> list[dict[str, Any]]:
    """Rows for ``pictures.examples_page``: the image as the model sees it, with the question's attention."""
    images = _images({row["key"] for row in rows}, index)
    page = []
    for row in rows:
        example = Example(images[row["key"]], (row["question"],))
        ((prediction,),) = predictor.predict([example], top_k=1, attention=True)
        page.append(
            {
                "image": predictor.processor.decode(example.image),
                "question": row["question"],
                "answer": row["answer"],
                "predicted": row["predicted"],
                "probability": row["probability"],
                "attention_HW": prediction.attention_HW,
            }
        )
    return page


def image_of(key: str, index: Index) -> bytes:
    """The encoded image of a sample."""
    return _images({key}, index)[key]


def _images(keys: set[str], index: Index) -> dict[str, bytes]:
    reader, found = ShardReader(index), dict[str, bytes]()
    for shard in index.shards:
        if len(found) == len(keys):
            break
        shard_keys = index.rows(shard.name)["key"].to_pylist()
        rows = [row for row, key in enumerate(shard_keys) if key in keys]
        found |= {record.key: record.image for record in reader.read(shard.name, rows)}
    return found
