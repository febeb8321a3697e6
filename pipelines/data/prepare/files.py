"""The files of a preparation: where they are within its folder, and their columns."""

from __future__ import annotations

import pyarrow as pa

FOLDER = "_prepare"
BEGUN = f"{FOLDER}/begun.json"
"""Written first: what is being prepared, and how."""
LOCK = f"{FOLDER}/.lock"
"""Held by the job that is preparing."""
MANIFEST = f"{FOLDER}/prepare.json"
"""Written last: that it was done, and the counts."""
REPORT = f"{FOLDER}/report.html"
DROPPED = f"{FOLDER}/dropped.parquet"
LINEAGE = f"{FOLDER}/lineage"
WORK = f"{FOLDER}/work"
"""Of the measuring pass; deleted when all shards are written."""

MEASURE_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("left_out", pa.int32()),
        ("hash", pa.uint64()),
        ("stored", pa.int64()),
        ("extension", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("part", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)
"""A row for each of ``Index.rows(shard)``. ``reason`` is null where no filter drops the sample; then ``left_out`` is
its number of texts of invalid length, ``stored`` its bytes in a tar, ``extension``, ``width`` and ``height`` are of the
image that it will have, and ``part``, ``offset`` and ``size`` its bytes in the files of encoded images; these are null
where the source's bytes are kept."""

LINEAGE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source_shard", pa.string()),
        ("source_key", pa.string()),
        ("source_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rewritten", pa.bool_()),
        ("joined", pa.list_(pa.struct([("shard", pa.string()), ("key", pa.string())]))),
    ]
)
"""A row for each sample of a shard, in tar order. ``source_sha256`` is of the source's image; ``rewritten``: whether
the image was encoded anew; ``joined``: the duplicates whose texts the sample has."""

DROPPED_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("original_shard", pa.string()),
        ("original_row", pa.int64()),
        ("original_key", pa.string()),
    ]
)
"""Of the source. The last three name the sample that a duplicate repeats, and are null otherwise."""


def measurements_file(shard: str) -> str:
    """The path of the file with the measurements of a source shard's samples."""
    return f"{WORK}/{shard}.parquet"


def encoded_images_file(shard: str, part: int) -> str:
    """The path of the file with the encoded images of a source shard, one after the other."""
    return f"{WORK}/{shard}.{part:06d}.images"


def lineage_file(shard: str) -> str:
    """The path of the file that says which source sample each sample of a prepared shard comes from."""
    return f"{LINEAGE}/{shard}.parquet"
