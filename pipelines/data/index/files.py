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
from pipelines.storage.folder import Folder

FOLDER = "_index"
FORMAT = 2
"""Of all files of an index; an index of another format is built anew."""
COUNTS = ("samples", "with_questions", "with_captions", "questions", "captions")
"""What is counted for each shard and split; a column of ``SHARD_SCHEMA`` is named ``samples_train``."""
READERS = 16
"""Threads that read parts of the index."""

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
"""Of a version. ``stamp`` is the tar's FileStamp; ``part`` names its samples file (``Part``), whose rows ``repeated``
are left out."""

_PART = re.compile(r"(?P<shard>.+\.tar)\.(?P<sha256>[0-9a-f]{16})-(?P<scan>[0-9a-f]{8})")


class Part(NamedTuple):
    """The name of what an index holds of one tar. It names all that this depends on, so that versions can share it.

    Attributes:
        shard: name of the tar.
        sha256: the first 16 digits of that of the tar.
        scan: 8 digits of a hash of the settings that make a sample valid.
    """

    shard: str
    sha256: str
    scan: str

    @property
    def name(self) -> str:
        return f"{self.shard}.{self.sha256}-{self.scan}"

    @classmethod
    def parse(cls, name: str) -> Part | None:
        """The part of this name or file name; None for another name."""
        match = _PART.fullmatch(name.removesuffix(".parquet"))
        return cls(**match.groupdict()) if match else None


def scan_digits(scan: Mapping[str, Any]) -> str:
    """``Part.scan`` of these settings."""
    return hashlib.sha256(json.dumps([FORMAT, dict(scan)], sort_keys=True).encode()).hexdigest()[:8]


def samples_file(part: str) -> str:
    """The file of a part's valid samples, within the folder of the tars."""
    return f"{FOLDER}/samples/{part}.parquet"


def faults_file(part: str) -> str:
    """The file of a part's faults, if it has any."""
    return f"{FOLDER}/faults/{part}.parquet"


def version_file(index_hash: str) -> str:
    """The file of the shards and the facts of a version of the index."""
    return f"{FOLDER}/versions/{index_hash}.parquet"


def quarantine_file(index_hash: str = "") -> str:
    """The quarantine of a version; if none is given, of the last job, whether it made an index or failed."""
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
        in_split = splits == split
        of_split = (
            in_split.sum(),
            (questions[in_split] > 0).sum(),
            (captions[in_split] > 0).sum(),
            questions[in_split].sum(),
            captions[in_split].sum(),
        )
        counts |= {f"{what}_{split}": int(n) for what, n in zip(COUNTS, of_split, strict=True)}
    return counts


def sample_count(shard: Mapping[str, Any]) -> int:
    """Samples of a row of ``SHARD_SCHEMA``."""
    return sum(shard[f"samples_{split}"] for split in SPLITS)


def read_samples(folder: Folder, part: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of a part's samples."""
    return read_table(folder.read(samples_file(part)), columns)


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
