"""Indexes one shard: writes its part of the index once, under a name with the tar's hash and file stamp.

So an interrupted job continues where it was, and a shard with an unchanged stamp is not read again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipelines.data.index.config import IndexConfig
from pipelines.data.index.fault import fault_table
from pipelines.data.index.files import (
    FOLDER,
    IndexPartName,
    count_samples_by_split,
    faults_file,
    hash_of_validity_settings,
    read_table,
    read_table_metadata,
    samples_file,
    to_parquet_bytes,
)
from pipelines.data.index.index import SplitAssignment
from pipelines.data.index.scan import scan_tar
from pipelines.data.tars.shards import shard_split
from pipelines.storage.folder import FileStamp, StorageFolder

Summary = dict[str, Any]
"""A row of ``SHARD_SCHEMA`` with ``inputs``, ``worst_run`` and ``passed_over`` (see ``ShardScan``)."""

_FACTS = ("part", "sha256", "size", "stamp", "inputs", "faults", "worst_run", "passed_over")


def index_shard(
    folder: StorageFolder,
    file: FileStamp,
    config: IndexConfig,
    assignment: SplitAssignment,
    force: bool = False,
    parts: Sequence[str] | None = None,
) -> Summary:
    """Write the part of the index that describes one tar, unless it exists for the same tar and settings.

    Args:
        parts: names of the existing parts of this shard; looked up if not given.

    Returns:
        the summary of the shard; or, where it cannot be read, ``name`` and the reason as ``unreadable``.
    """
    parts = index_parts_by_shard(folder).get(file.name, []) if parts is None else parts
    samples = None if force else _unchanged_samples(folder, file, config, parts)
    if samples is None:
        try:
            before = folder.stamp(file.name)
            with folder.stream(file.name, file.size) as stream:
                scan = scan_tar(stream.read, **config.validity_settings)
            if folder.stamp(file.name) != before:
                raise OSError("it changed while it was read; run the index job again")
        except OSError as error:
            return {"name": file.name, "unreadable": f"{type(error).__name__}: {error}"}
        facts: dict[str, Any] = {
            "part": IndexPartName(
                file.name, scan.sha256[:16], hash_of_validity_settings(config.validity_settings)
            ).name,
            "sha256": scan.sha256,
            "size": scan.size,
            "stamp": file.stamp,
            "scan": config.validity_settings,
            "inputs": scan.inputs,
            "faults": len(scan.faults),
            "worst_run": scan.worst_run,
            "passed_over": scan.passed_over,
        }
        # The samples file comes last: where it exists, the faults file does too.
        if scan.faults:
            folder.write(faults_file(facts["part"]), to_parquet_bytes(fault_table(file.name, scan.faults), {}))
        folder.write(samples_file(facts["part"]), to_parquet_bytes(scan.samples, facts))
        samples = scan.samples.replace_schema_metadata({"facts": json.dumps(facts)})
    facts = read_table_metadata(samples)
    split = shard_split(file.name, config.splits)
    splits = assignment.assign_splits(split, samples["split_hash"].to_numpy())
    return {
        "name": file.name,
        "split": split,
        **{name: facts[name] for name in _FACTS},
        "repeated": [],
        **count_samples_by_split(samples, splits),
    }


def index_parts_by_shard(folder: StorageFolder) -> dict[str, list[str]]:
    """Map each shard to the names of its existing index parts."""
    parts: dict[str, list[str]] = {}
    for file in folder.files(f"{FOLDER}/samples"):
        if part := IndexPartName.parse(file.name):
            parts.setdefault(part.shard, []).append(part.name)
    return parts


def _unchanged_samples(
    folder: StorageFolder, file: FileStamp, config: IndexConfig, parts: Sequence[str]
) -> pa.Table | None:
    """Read the shard's samples from an earlier index if the tar and the settings are the same."""
    if not file.stamp:
        return None
    for part in parts:
        if not part.endswith(f"-{hash_of_validity_settings(config.validity_settings)}"):
            continue
        try:
            table = read_table(folder.read(samples_file(part)))
        except (FileNotFoundError, pa.ArrowException):
            continue
        facts = read_table_metadata(table)
        if (facts.get("size"), facts.get("stamp"), facts.get("scan")) == (
            file.size,
            file.stamp,
            config.validity_settings,
        ):
            return table
    return None
