"""Converts a table of answers to the plain data that a task judges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.evaluate.neighbours import Neighbours
from vlmodel.judging import AnsweredRows
from vlmodel.task import TaskRow


def parse_answered_rows(answers: pa.Table, neighbours: Neighbours | None = None) -> AnsweredRows:
    """Convert the rows of a table of model answers (``predict.SCHEMA``) to plain data that a task judges.

    Args:
        neighbours: texts of the nearest training images. They count if every row has some.
    """
    columns = {
        name: answers[name].to_pylist() for name in ("text", "target", "references", "id", "answers", "predicted")
    }
    of_rows = zip(columns["text"], columns["target"], columns["references"], columns["id"], strict=True)
    return AnsweredRows(
        sample_N=number_samples_of_rows(answers),
        rows=[
            TaskRow(text, target, tuple(references or ()), identifier)
            for text, target, references, identifier in of_rows
        ],
        predicted=columns["predicted"],
        probability=answers["probability"].to_pylist(),
        ranked=[ranked or [] for ranked in columns["answers"]],
        shuffled=answers["shuffled"].to_pylist(),
        shuffled_probability=answers["shuffled_probability"].to_pylist(),
        image_embedding=_vectors_of_column(answers["image_embedding"]),
        text_embedding=_vectors_of_column(answers["text_embedding"]),
        neighbours=_parse_rows(answers, neighbours),
    )


def _parse_rows(answers: pa.Table, neighbours: Neighbours | None) -> list[Sequence[str]] | None:
    names = zip(answers["split"].to_pylist(), answers["key"].to_pylist(), strict=True)
    found = [(neighbours or {}).get(name) for name in names]
    texts = [of_row for of_row in found if of_row]
    return texts if len(texts) == len(found) else None


def number_samples_of_rows(answers: pa.Table) -> NDArray[np.int64]:
    """Return for each row the number of its sample. Samples of different splits may have the same key."""
    codes = [
        pc.dictionary_encode(answers[name], null_encoding="encode").combine_chunks().indices.to_numpy().astype(np.int64)
        for name in ("split", "key")
    ]
    return np.unique(np.stack(codes), axis=1, return_inverse=True)[1].astype(np.int64).ravel()


def _vectors_of_column(column: pa.ChunkedArray) -> list[NDArray[np.float32] | None]:
    """Return the vectors of a column, some of which may be null."""
    flat = column.combine_chunks()
    valid = pc.is_valid(flat).to_numpy(zero_copy_only=False)
    vectors: list[NDArray[np.float32] | None] = [None] * len(flat)
    if valid.any():
        values_VD = np.asarray(flat.drop_null().flatten(), np.float32).reshape(int(valid.sum()), -1)
        for row, vector_D in zip(np.flatnonzero(valid).tolist(), values_VD, strict=True):
            vectors[row] = vector_D
    return vectors
