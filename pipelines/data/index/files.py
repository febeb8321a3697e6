"""The files of an index: where they are, their columns, and the facts in their metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.shards import SPLITS

FOLDER = "_index"
COUNTS = ("samples", "with_questions", "with_captions", "questions", "captions")
"""What is counted for each shard and split; a column of ``shards.parquet`` is named ``samples_train``."""

SHARD_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("faults", pa.int64()),
        ("repeated", pa.list_(pa.int64())),
        *((f"{what}_{split}", pa.int64()) for what in COUNTS for split in SPLITS),
    ]
)
"""Of ``shards.parquet``. ``stamp`` is the tar's FileStamp; ``repeated`` are rows of its samples file, left out."""


def samples_file(shard: str) -> str:
    """Where the sound samples of a shard are, within the folder of the tars."""
    return f"{FOLDER}/samples/{shard}.parquet"


def faults_file(shard: str) -> str:
    """Where the faults of a shard are, if it has any."""
    return f"{FOLDER}/faults/{shard}.parquet"


def without(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """The table less some of its rows."""
    if not rows:
        return table
    keep = np.ones(table.num_rows, np.bool_)
    keep[list(rows)] = False
    return table.filter(pa.array(keep))


def count_samples(table: pa.Table, splits: NDArray[np.str_]) -> dict[str, int]:
    """Counts by split of a samples table, as columns of ``shards.parquet``."""
    captions, questions = table["captions"].to_numpy(), table["questions"].to_numpy()
    counts: dict[str, int] = {}
    for split in SPLITS:
        here = splits == split
        of_split = (
            here.sum(),
            (questions[here] > 0).sum(),
            (captions[here] > 0).sum(),
            questions[here].sum(),
            captions[here].sum(),
        )
        counts |= {f"{what}_{split}": int(n) for what, n in zip(COUNTS, of_split, strict=True)}
    return counts


def read_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a Parquet file, or some of its columns."""
    return pq.ParquetFile(pa.BufferReader(data)).read(columns)


def table_bytes(table: pa.Table, facts: Mapping[str, Any]) -> bytes:
    """The table as a Parquet file with ``facts`` in its metadata."""
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"facts": json.dumps(dict(facts))}), out, compression="zstd")
    return out.getvalue()


def metadata(table: pa.Table) -> dict[str, Any]:
    """The ``facts`` of a table from ``table_bytes``; {} where there are none."""
    stored = (table.schema.metadata or {}).get(b"facts")
    facts: dict[str, Any] = json.loads(stored) if stored else {}
    return facts
