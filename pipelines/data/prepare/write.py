"""The writing pass of a preparation: one task reads the samples of a prepared shard from the source, and writes the
shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.data.index.files import read_table, to_parquet_bytes
from pipelines.data.index.index import Index
from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.files import LINEAGE_SCHEMA, encoded_images_file, lineage_file, measurements_file
from pipelines.data.prepare.filters import merge_texts, texts_of_valid_length
from pipelines.data.prepare.measure import lineage_entry
from pipelines.data.tars.inputs import TEXT
from pipelines.data.tars.reader import ShardReader
from pipelines.data.tars.shards import Member, build_tar, make_sample_members
from pipelines.errors import DataError
from pipelines.storage.folder import StorageFolder
from vlmodel.sample import Sample

# Samples that are read together; a task holds them beside the tar that it writes.
_CHUNK = 64

Row = dict[str, Any]
SampleLocation = tuple[str, int]
"""A sample of the source: its shard, and its row in ``Index.rows`` of that shard."""


@dataclass(frozen=True)
class ShardPlan:
    """The plan of a prepared shard: which source samples it will hold.

    Attributes:
        name: of the tar.
        runs: its samples in order: shards of the source, each with rows of its ``Index.rows``.
        joining: samples, by their number in the shard, with the duplicates whose texts they get.
    """

    name: str
    runs: list[tuple[str, list[int]]]
    joining: list[tuple[int, list[SampleLocation]]]


def write_shard(index: Index, plan: ShardPlan, config: PrepareConfig, out: StorageFolder) -> None:
    """Write a shard and its lineage, unless it exists. Holds the whole shard in memory.

    Raises:
        DataError: the source or its measurements cannot be read, or have changed.
    """
    # The tar comes last: where it exists, the lineage does too.
    if out.exists(plan.name):
        return
    lineage: list[Row] = []
    tar = build_tar(_iterate_tar_members(ShardReader(index), plan, config, out, lineage))
    out.write(lineage_file(plan.name), to_parquet_bytes(pa.Table.from_pylist(lineage, LINEAGE_SCHEMA), {}))
    out.write(plan.name, tar)


def _iterate_tar_members(
    reader: ShardReader, plan: ShardPlan, config: PrepareConfig, out: StorageFolder, lineage: list[Row]
) -> Iterator[list[Member]]:
    """Yield the tar members of each sample of a shard; appends to ``lineage``."""
    joining, number = dict(plan.joining), 0
    further = [name for name in reader.index.inputs if name != "image"]
    for shard, rows in plan.runs:
        table = reader.index.rows(shard)
        hashes, extensions = table["image.sha256"], {name: table[f"{name}.extension"] for name in further}
        all_measured = read_table(_read_work_file(out, shard))
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            measured = all_measured.take(pa.array(chunk)).to_pylist()
            images = _read_stored_images(reader, shard, chunk, measured, out)
            records, extras = reader.read(shard, chunk, inputs=further), reader.read_metadata(shard, chunk)
            for row, measurement, image, record, extra in zip(chunk, measured, images, records, extras, strict=True):
                duplicates = [(name, reader.read(name, [at], inputs=())[0]) for name, at in joining.get(number, [])]
                texts = merge_texts(
                    *(texts_of_valid_length(r.texts, config) for r in (record, *(other for _, other in duplicates)))
                )
                entry = lineage_entry(shard, record.key, hashes[row].as_py(), extra)
                lineage.append(_lineage_row(record, entry["prepared_from"], measurement, duplicates))
                number += 1
                inputs = {name: (data, extensions[name][row].as_py()) for name, data in record.inputs.items()}
                inputs["image"] = image, measurement["extension"]
                yield make_sample_members(record.key, inputs, texts, entry, [*inputs, TEXT])


def _lineage_row(record: Sample, source: Row, measurement: Row, duplicates: Sequence[tuple[str, Sample]]) -> Row:
    return {
        "key": record.key,
        **{f"source_{name}": source[name] for name in ("shard", "key", "sha256")},
        "width": measurement["width"],
        "height": measurement["height"],
        "rewritten": measurement["part"] is not None,
        "joined": [{"shard": shard, "key": other.key} for shard, other in duplicates],
    }


def _read_stored_images(
    reader: ShardReader, shard: str, rows: Sequence[int], measured: Sequence[Row], out: StorageFolder
) -> list[bytes]:
    """Read the images of samples: newly encoded ones, or the source's own."""
    same = [n for n, measurement in enumerate(measured) if measurement["part"] is None]
    samples = reader.read(shard, [rows[n] for n in same], inputs=("image",))
    images = dict(zip(same, (sample.inputs["image"] for sample in samples), strict=True))
    for part in sorted({measurement["part"] for measurement in measured if measurement["part"] is not None}):
        of_part = [n for n, measurement in enumerate(measured) if measurement["part"] == part]
        ranges = [(measured[n]["offset"], measured[n]["size"]) for n in of_part]
        try:
            images |= dict(zip(of_part, out.read_ranges(encoded_images_file(shard, part), ranges), strict=True))
        except OSError as error:
            raise _source_changed_error(out, encoded_images_file(shard, part)) from error
    return [images[n] for n in range(len(rows))]


def _read_work_file(out: StorageFolder, shard: str) -> bytes:
    try:
        return out.read(measurements_file(shard))
    except OSError as error:
        raise _source_changed_error(out, measurements_file(shard)) from error


def _source_changed_error(out: StorageFolder, name: str) -> DataError:
    return DataError(f"{name} of {out.uri!r} cannot be read; remove that folder and prepare the data anew")
