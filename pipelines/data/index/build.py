"""Builds the index: a Ray Data pass with one task for each shard, then the checks that need all shards together."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipelines.data.index.config import IndexConfig
from pipelines.data.index.fault import FAULT_SCHEMA, QuarantineEntry
from pipelines.data.index.files import (
    FOLDER,
    FORMAT,
    READERS,
    SHARD_SCHEMA,
    TEXT_COUNTS,
    IndexPartName,
    count_samples_by_split,
    drop_rows,
    faults_file,
    quarantine_file,
    read_indexed_samples,
    read_table,
    sample_counts_by_split,
    to_parquet_bytes,
    version_file,
)
from pipelines.data.index.index import Index, SplitAssignment
from pipelines.data.index.index_shard import Summary, index_parts_by_shard, index_shard
from pipelines.data.index.limits import require_tolerable_faults
from pipelines.data.index.quarantine import count_reasons
from pipelines.data.index.quarantine_page import render_quarantine_page
from pipelines.data.index.repeated_keys import find_repeated_keys
from pipelines.data.index.shard_pass import map_shards
from pipelines.data.index.statistics import compute_index_statistics
from pipelines.data.tars.errors import FaultReason
from pipelines.data.tars.shards import SPLITS, assign_shard_splits
from pipelines.errors import DataError
from pipelines.storage.folder import FileStamp, StorageFolder

_VERSIONS = 100

log = logging.getLogger(__name__)


def build_index(
    tars: str,
    config: IndexConfig | None = None,
    *,
    force: bool = False,
    report_progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Index the tars of a folder by Ray Data, one task for each shard; unchanged shards are not read again.

    Keys are unique within the shards of one split: where two shards have the same key, the first by name keeps it, and
    the other's sample is a DUPLICATE_KEY. (Train and test may both have a sample "0".)

    Args:
        tars: local folder or URI that holds ``*.tar``.
        force: read every shard again, as does ``IndexConfig.force``.
        report_progress: called with (shards done, shards in all).

    Raises:
        DataError: there are no tars, their names tell no split, or there are too many faults; then
            ``quarantine.parquet`` is written, and an earlier index stays in use.
    """
    folder, config = StorageFolder(tars), config or IndexConfig()
    files = _find_tars(folder)
    _require_writable_folder(folder)
    versions = _version_hashes(folder)
    splits = assign_shard_splits([file.name for file in files], config.splits)
    assignment = SplitAssignment(0.0 if "val" in splits.values() else config.validation_fraction)

    summaries: dict[str, Summary] = {}
    unreadable = []
    for summary in _index_shards(folder, files, config, assignment, force or config.force):
        if "unreadable" in summary:
            unreadable.append(_unreadable_shard_fault(summary["name"], summary["unreadable"]))
        else:
            summaries[summary["name"]] = summary
        if report_progress is not None:
            report_progress(len(summaries) + len(unreadable), len(files))

    folders = [name for name in folder.subfolders() if name.endswith(".tar")]
    unreadable += [_unreadable_shard_fault(name, "a folder, and no tar") for name in folders]
    shards = [summaries[name] for name in sorted(summaries)]
    repeated = find_repeated_keys(folder, shards)
    for name, of_shard in groupby(repeated, key=lambda repeat: repeat[0]):
        _exclude_samples(folder, summaries[name], [row for _, row, _ in of_shard], assignment)
    quarantine = _collect_faults(folder, shards, [*unreadable, *(fault.to_row(name) for name, _, fault in repeated)])

    by_shard = [sample_counts_by_split(shard) for shard in shards]
    counts = {split: sum(of_shard.get(split, 0) for of_shard in by_shard) for split in SPLITS}
    inputs = _media_of_inputs(tars, shards)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "hash": _index_hash(shards, config.validity_settings, assignment),
        "scan": config.validity_settings,
        "inputs": inputs,
        "validation_fraction": assignment.fraction,
        "counts": counts,
        "quarantine": count_reasons(quarantine),
        "passed_over": dict(sum((Counter(s["passed_over"]) for s in shards), Counter())),
        "survey": compute_index_statistics(
            shards, inputs, partial(read_indexed_samples, folder), assignment.assign_splits
        ),
    }
    folder.write(quarantine_file(), to_parquet_bytes(quarantine, {"hash": facts["hash"]}))
    if config.report:
        folder.write(f"{FOLDER}/quarantine.html", render_quarantine_page(folder, quarantine, counts).encode())
    require_tolerable_faults(tars, facts, quarantine, shards, config, has_index=bool(versions))
    versions = [*(version for version in versions if version != facts["hash"]), facts["hash"]]
    _write_version(folder, shards, facts, quarantine, versions[-_VERSIONS:])
    sha256s = {shard["name"]: shard["sha256"] for shard in shards}
    _delete_unused_files(folder, {file.name: sha256s.get(file.name, "") for file in files}, versions[:-_VERSIONS])
    return Index.open(tars)


def _index_hash(shards: Sequence[Summary], scan: Mapping[str, Any], assignment: SplitAssignment) -> str:
    identities = [[shard["name"], shard["sha256"], shard["split"]] for shard in shards]
    facts = [FORMAT, identities, dict(scan), assignment.fraction]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _media_of_inputs(tars: str, shards: Sequence[Summary]) -> dict[str, str]:
    """Map each input that any sample has to its medium, texts left out.

    Raises:
        DataError: two shards have one input in two media.
    """
    found: dict[str, tuple[str, str]] = {}
    for shard in shards:
        for name, medium in shard["inputs"].items():
            usual, first = found.setdefault(name, (medium, shard["name"]))
            if usual != medium:
                raise DataError(
                    f"{tars!r} has the input {name!r} of medium {usual} in {first} and of {medium} in {shard['name']}; "
                    "an input is of one medium: rename it in one of these tars, or index them in two folders"
                )
    return {name: medium for name, (medium, _) in sorted(found.items())}


def _unreadable_shard_fault(name: str, problem: str) -> dict[str, Any]:
    return QuarantineEntry(None, None, None, FaultReason.UNREADABLE_SHARD, problem).to_row(name)


def _version_hashes(folder: StorageFolder) -> list[str]:
    """List the hashes of the stored versions of an index, the newest last; versions of another format are deleted."""
    try:
        facts = json.loads(folder.read(f"{FOLDER}/index.json"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return []
    if (stored_format := facts.get("format")) != FORMAT:
        log.warning("the index of %s has format %s and is built anew, in format %s", folder.uri, stored_format, FORMAT)
        for subfolder in ("samples", "faults", "versions"):
            folder.remove_folder(f"{FOLDER}/{subfolder}")
        return []
    versions: list[str] = facts["versions"]
    return versions


def require_tars(tars: str) -> None:
    """Raise the errors that ``build_index`` would raise first, for callers that must start a cluster before.

    Raises:
        DataError: there are no tars.
    """
    _find_tars(StorageFolder(tars))


def _find_tars(folder: StorageFolder) -> list[FileStamp]:
    files = folder.files()
    tars = [file for file in files if file.name.endswith(".tar") and not file.name.startswith(".")]
    if tars:
        return tars
    compressed = [file.name for file in files if file.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))]
    if compressed:
        remedy = f"decompress them ({compressed[0]}, ...): samples are read by their offset in the tar"
    elif subfolders := [name for name in folder.subfolders() if name != FOLDER]:
        remedy = f"it has subfolders ({', '.join(subfolders[:5])}); name the one that holds the tars in data.tars"
    else:
        remedy = "import data first (python -m jobs.import_data --config ...), or name another folder in data.tars"
    raise DataError(f"no .tar in {folder.uri!r}; {remedy}")


def _require_writable_folder(folder: StorageFolder) -> None:
    """Raise an error now if the folder cannot be written, instead of after hours of reading."""
    probe = f"{FOLDER}/.writable"
    try:
        folder.write(probe, b"")
        folder.remove(probe)
    except (OSError, NotImplementedError) as error:
        remedy = "index the tars where they are writable; afterwards tars and index may be read-only"
        raise DataError(f"no index can be written beside the tars of {folder.uri!r} ({error}); {remedy}") from error


def _index_shards(
    folder: StorageFolder, files: Sequence[FileStamp], config: IndexConfig, assignment: SplitAssignment, force: bool
) -> Iterator[Summary]:
    """Index all shards and yield their summaries in the order in which they are done."""

    def index_row(row: dict[str, Any]) -> dict[str, Any]:
        file = FileStamp(row["name"], row["size"], row["stamp"])
        # As JSON: a column of Ray Data takes its type from the first rows.
        return {"summary": json.dumps(index_shard(folder, file, config, assignment, force, json.loads(row["parts"])))}

    parts = index_parts_by_shard(folder)
    items = [
        {"name": file.name, "size": file.size, "stamp": file.stamp, "parts": json.dumps(parts.get(file.name, []))}
        for file in files
    ]
    for row in map_shards(items, index_row):
        yield json.loads(row["summary"])


def _exclude_samples(folder: StorageFolder, shard: Summary, rows: Sequence[int], assignment: SplitAssignment) -> None:
    samples = drop_rows(read_indexed_samples(folder, shard["part"], ["split_hash", "present", *TEXT_COUNTS]), rows)
    splits = assignment.assign_splits(shard["split"], samples["split_hash"].to_numpy())
    shard |= {"repeated": list(rows), **count_samples_by_split(samples, splits)}


def _collect_faults(folder: StorageFolder, shards: Sequence[Summary], more: list[dict[str, Any]]) -> pa.Table:
    parts = [shard["part"] for shard in shards if shard["faults"]]
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda part: read_table(folder.read(faults_file(part))), parts))
    tables = [table.replace_schema_metadata() for table in tables]
    all_faults = pa.concat_tables([*tables, pa.Table.from_pylist(more, FAULT_SCHEMA)])
    return all_faults.sort_by([("shard", "ascending"), ("offset", "ascending")])


def _write_version(
    folder: StorageFolder,
    shards: Sequence[Summary],
    facts: Mapping[str, Any],
    quarantine: pa.Table,
    versions: Sequence[str],
) -> None:
    columns = [{name: shard[name] for name in SHARD_SCHEMA.names} for shard in shards]
    folder.write(quarantine_file(facts["hash"]), to_parquet_bytes(quarantine, {"hash": facts["hash"]}))
    folder.write(version_file(facts["hash"]), to_parquet_bytes(pa.Table.from_pylist(columns, SHARD_SCHEMA), facts))
    newest = {**facts, "versions": list(versions)}
    folder.write(f"{FOLDER}/index.json", json.dumps(newest, indent=1, sort_keys=True).encode())


def _delete_unused_files(folder: StorageFolder, tars: Mapping[str, str], versions: Sequence[str]) -> None:
    """Delete old versions, the parts of removed or changed tars, and what interrupted jobs left.

    Args:
        tars: sha256 of each existing tar; "" where it is not known.
        versions: hashes of those to delete.
    """
    for version in versions:
        folder.remove(version_file(version))
        folder.remove(quarantine_file(version))
    for kind in ("samples", "faults"):
        for file in folder.files(f"{FOLDER}/{kind}"):
            part = IndexPartName.parse(file.name)
            sha256 = tars.get(part.shard) if part else None
            if part is None or sha256 is None or (sha256 and sha256[:16] != part.sha256):
                folder.remove(f"{FOLDER}/{kind}/{file.name}")
