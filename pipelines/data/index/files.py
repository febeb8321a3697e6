"""The files of an index: where they are, their columns, and the facts in their metadata."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.tars.shards import SPLITS

FOLDER = "_index"
FORMAT = 2
"""Of all files of an index; those of another format are made anew."""
COUNTS = ("samples", "with_questions", "with_captions", "questions", "captions")
"""What is counted for each shard and split; a column of ``SHARD_SCHEMA`` is named ``samples_train``."""

SHARD_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("part", pa.string()),
        ("faults", pa.int64()),
        ("repeated", pa.list_(pa.int64())),
        *((f"{what}_{split}", pa.int64()) for what in COUNTS for split in SPLITS),
    ]
)
"""Of a version. ``stamp`` is the tar's FileStamp, ``part`` names its samples file (``Part``), and ``repeated`` are rows
of that which are left out."""

_PART = re.compile(r"(?P<shard>.+\.tar)\.(?P<sha256>[0-9a-f]{16})-(?P<scan>[0-9a-f]{8})")


class Part(NamedTuple):
    """What an index says of one tar, named by all that it depends on, so that several versions can share it.

    Attributes:
        shard: name of the tar.
        sha256: the first 16 digits of that of the tar.
        scan: 8 digits of a hash of what makes a sample sound.
    """

    shard: str
    sha256: str
    scan: str

    @property
    def name(self) -> str:
        return f"{self.shard}.{self.sha256}-{self.scan}"

    @classmethod
    def parse(cls, name: str) -> Part | None:
        """The part of this name, or of the file that holds it; None for another name."""
        match = _PART.fullmatch(name.removesuffix(".parquet"))
        return cls(**match.groupdict()) if match else None


def scan_digits(scan: Mapping[str, Any]) -> str:
    """``Part.scan`` of these settings."""
    return hashlib.sha256(json.dumps([FORMAT, dict(scan)], sort_keys=True).encode()).hexdigest()[:8]


def samples_file(part: str) -> str:
    """Where the sound samples of a part are, within the folder of the tars."""
    return f"{FOLDER}/samples/{part}.parquet"


def faults_file(part: str) -> str:
    """Where the faults of a part are, if it has any."""
    return f"{FOLDER}/faults/{part}.parquet"


def version_file(index_hash: str) -> str:
    """Where the shards and the facts of a version of the index are."""
    return f"{FOLDER}/versions/{index_hash}.parquet"


def quarantine_file(index_hash: str = "") -> str:
    """Where the quarantine of a version is, or that of the last job, whether it made an index or not."""
    return f"{FOLDER}/versions/{index_hash}.quarantine.parquet" if index_hash else f"{FOLDER}/quarantine.parquet"


def without(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """The table less some of its rows."""
    if not rows:
        return table
    keep = np.ones(table.num_rows, np.bool_)
    keep[list(rows)] = False
    return table.filter(pa.array(keep))


def count_samples(table: pa.Table, splits: NDArray[np.str_]) -> dict[str, int]:
    """Counts by split of a samples table, as columns of ``SHARD_SCHEMA``."""
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
