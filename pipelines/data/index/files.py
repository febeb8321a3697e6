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
from pipelines.storage.folder import StorageFolder

FOLDER = "_index"
FORMAT = 5
"""Of all files of an index; an index of another format is built anew."""
TEXT_COUNTS = ("questions", "captions", "conversations")
"""Texts that are counted for each shard and split; a column of ``SHARD_SCHEMA`` is named ``questions_train``."""
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
        ("present", pa.string()),
        *((f"{what}_{split}", pa.int64()) for what in TEXT_COUNTS for split in SPLITS),
    ]
)
"""Of a version. ``stamp`` is the tar's FileStamp; ``part`` names its samples file (``IndexPartName``), whose rows
``repeated`` are left out. ``present`` is JSON: the number of samples by split and by what is present, as
``{"train": {"captions,image": 12}}``."""

_PART = re.compile(r"(?P<shard>.+\.tar)\.(?P<sha256>[0-9a-f]{16})-(?P<settings_hash>[0-9a-f]{8})")


class IndexPartName(NamedTuple):
    """The name of the index file that describes one tar. It contains everything on which the file depends, so that
    versions can share it.

    Attributes:
        shard: name of the tar.
        sha256: the first 16 digits of that of the tar.
        settings_hash: 8 digits of a hash of the settings that make a sample valid.
    """

    shard: str
    sha256: str
    settings_hash: str

    @property
    def name(self) -> str:
        return f"{self.shard}.{self.sha256}-{self.settings_hash}"

    @classmethod
    def parse(cls, name: str) -> IndexPartName | None:
        """Parse the name of a part or of its file; None for another name."""
        match = _PART.fullmatch(name.removesuffix(".parquet"))
        return cls(**match.groupdict()) if match else None


def hash_of_validity_settings(settings: Mapping[str, Any]) -> str:
    """Hash the settings that decide which samples are valid, to a short string."""
    return hashlib.sha256(json.dumps([FORMAT, dict(settings)], sort_keys=True).encode()).hexdigest()[:8]


def samples_file(part: str) -> str:
    """The path of the table of a tar's valid samples, within the folder of the tars."""
    return f"{FOLDER}/samples/{part}.parquet"


def faults_file(part: str) -> str:
    """The path of the table of a tar's faults, which exists if the tar has any."""
    return f"{FOLDER}/faults/{part}.parquet"


def version_file(index_hash: str) -> str:
    """The path of the table of shards and facts of a version of the index."""
    return f"{FOLDER}/versions/{index_hash}.parquet"


def quarantine_file(index_hash: str = "") -> str:
    """The path of a version's quarantine or, without a version, of the last job's, even if that failed."""
    return f"{FOLDER}/versions/{index_hash}.quarantine.parquet" if index_hash else f"{FOLDER}/quarantine.parquet"


def drop_rows(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """Return a copy of a table without the rows with these numbers."""
    if not rows:
        return table
    keep = np.ones(table.num_rows, np.bool_)
    keep[list(rows)] = False
    return table.filter(pa.array(keep))


def count_samples_by_split(table: pa.Table, splits: NDArray[np.str_]) -> dict[str, Any]:
    """Count the samples of a shard by split, as columns of ``SHARD_SCHEMA``."""
    counts: dict[str, Any] = {"present": json.dumps(_count_present(table["present"], splits))}
    for what in TEXT_COUNTS:
        number = table[what].to_numpy()
        counts |= {f"{what}_{split}": int(number[splits == split].sum()) for split in SPLITS}
    return counts


def _count_present(present: pa.ChunkedArray, splits: NDArray[np.str_]) -> dict[str, dict[str, int]]:
    codes = present.combine_chunks().dictionary_encode()
    names, codes_N = codes.dictionary.to_pylist(), codes.indices.to_numpy()
    counts = {}
    for split in SPLITS:
        of_split = np.bincount(codes_N[splits == split], minlength=len(names)).tolist()
        if any(of_split):
            counts[split] = {name: count for name, count in zip(names, of_split, strict=True) if count}
    return counts


def sample_counts_by_split(shard: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of samples of a shard by split, without splits that have none."""
    return {split: sum(counts.values()) for split, counts in json.loads(shard["present"]).items()}


def total_sample_count(shard: Mapping[str, Any]) -> int:
    """Return the number of all samples of a shard."""
    return sum(sample_counts_by_split(shard).values())


def read_indexed_samples(folder: StorageFolder, part: str, columns: Sequence[str]) -> pa.Table:
    """Read some columns of the samples of one tar from the index."""
    return read_table(folder.read(samples_file(part)), columns)


def read_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table from the bytes of a Parquet file, or some of its columns."""
    return pq.ParquetFile(pa.BufferReader(data)).read(columns)


def to_parquet_bytes(table: pa.Table, facts: Mapping[str, Any]) -> bytes:
    """Write a table as the bytes of a Parquet file with ``facts`` in its metadata."""
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"facts": json.dumps(dict(facts))}), out, compression="zstd")
    return out.getvalue()


def read_table_metadata(table: pa.Table) -> dict[str, Any]:
    """Return the ``facts`` of a table that ``to_parquet_bytes`` wrote; {} if there are none."""
    stored = (table.schema.metadata or {}).get(b"facts")
    facts: dict[str, Any] = json.loads(stored) if stored else {}
    return facts
