"""Building the index: a Ray Data pass with one task a shard, then what only all shards together can tell.

A task writes its shard's part of the index with the hash and the stamp of the tar inside. So a job that is interrupted
goes on where it was, and a shard with an unchanged stamp is not read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data.errors import DataError, Reason
from pipelines.data.index.files import (
    FOLDER,
    SHARD_SCHEMA,
    count_samples,
    faults_file,
    metadata,
    read_table,
    samples_file,
    table_bytes,
    without,
)
from pipelines.data.index.index import FORMAT, Assignment, Index, IndexConfig, index_hash
from pipelines.data.index.quarantine import describe_faults, reason_counts
from pipelines.data.index.quarantine_page import quarantine_page
from pipelines.data.index.scan import FAULT_SCHEMA, SAMPLE_SCHEMA, Fault, fault_table, scan_tar
from pipelines.data.index.shard_pass import over_shards
from pipelines.data.shards import SPLITS, shard_split, shard_splits
from pipelines.data.storage import FileStamp, Folder

Summary = dict[str, Any]

# Above this many samples, keys are compared in several passes over ranges of their hashes: 8 bytes each, a few copies.
_KEYS_PER_PASS = 50_000_000
_READERS = 16


def build(tars: str, config: IndexConfig, *, force: bool, report_progress: Callable[[int, int], None] | None) -> Index:
    """See ``pipelines.data.index.index.build_index``."""
    folder = Folder(tars)
    files = _find_tars(folder)
    _check_writable(folder)
    splits = shard_splits([file.name for file in files], config.splits)
    assignment = Assignment(0.0 if "val" in splits.values() else config.validation_fraction)

    summaries: dict[str, Summary] = {}
    lost: list[dict[str, Any]] = []
    for summary in _map_shards(folder, files, config, assignment, force):
        if "unreadable" in summary:
            fault = Fault(None, None, None, Reason.UNREADABLE_SHARD, summary["unreadable"])
            lost.append(fault.row(summary["name"]))
        else:
            summaries[summary["name"]] = summary
        if report_progress is not None:
            report_progress(len(summaries) + len(lost), len(files))

    shards = [summaries[name] for name in sorted(summaries)]
    repeats = _repeated_keys(folder, shards)
    for name, of_shard in groupby(repeats, key=lambda repeat: repeat[0]):
        _leave_out(folder, summaries[name], [row for _, row, _ in of_shard], assignment)
    quarantine = _collect_faults(folder, shards, [*lost, *(fault.row(name) for name, _, fault in repeats)])

    counts = {split: sum(s[f"samples_{split}"] for s in shards) for split in SPLITS}
    facts = {
        "format": FORMAT,
        "hash": index_hash([(s["name"], s["sha256"], s["split"]) for s in shards], config.scan, assignment),
        "scan": config.scan,
        "validation_fraction": assignment.fraction,
        "counts": counts,
        "quarantine": reason_counts(quarantine),
    }
    folder.write(f"{FOLDER}/quarantine.parquet", table_bytes(quarantine, {"hash": facts["hash"]}))
    if config.report:
        folder.write(f"{FOLDER}/quarantine.html", quarantine_page(folder, quarantine, counts).encode())
    try:
        _check_limits(tars, facts, quarantine, max((s["worst_run"] for s in shards), default=0), config)
    except DataError:
        folder.remove(f"{FOLDER}/index.json")
        raise
    columns = [{name: shard[name] for name in SHARD_SCHEMA.names} for shard in shards]
    table = pa.Table.from_pylist(columns, SHARD_SCHEMA)
    folder.write(f"{FOLDER}/shards.parquet", table_bytes(table, {"hash": facts["hash"]}))
    folder.write(f"{FOLDER}/index.json", json.dumps(facts, indent=1, sort_keys=True).encode())
    _sweep(folder, {file.name for file in files})
    return Index.open(tars)


def index_shard(
    folder: Folder, file: FileStamp, config: IndexConfig, assignment: Assignment, force: bool = False
) -> Summary:
    """Write one shard's part of the index, unless the one that is there is of the same tar and settings.

    Returns:
        its row of ``shards.parquet``, and ``worst_run``; or ``name`` and ``unreadable``, what kept it from being read.
    """
    samples = None if force else _unchanged(folder, file, config)
    if samples is None:
        try:
            before = folder.stamp(file.name)
            with folder.stream(file.name, file.size) as stream:
                scan = scan_tar(stream.read, **config.scan)
            if folder.stamp(file.name) != before:
                raise OSError("it changed while it was read; run the index job again")
        except OSError as error:
            return {"name": file.name, "unreadable": f"{type(error).__name__}: {error}"}
        facts = {
            "sha256": scan.sha256,
            "size": scan.size,
            "stamp": file.stamp,
            "scan": config.scan,
            "faults": len(scan.faults),
            "worst_run": scan.worst_run,
        }
        # The samples file comes last: it vouches for the faults.
        folder.remove(samples_file(file.name))
        folder.remove(faults_file(file.name))
        if scan.faults:
            folder.write(faults_file(file.name), table_bytes(fault_table(file.name, scan.faults), {}))
        folder.write(samples_file(file.name), table_bytes(scan.samples, facts))
        samples = scan.samples.replace_schema_metadata({"facts": json.dumps(facts)})
    facts = metadata(samples)
    split = shard_split(file.name, config.splits)
    splits = assignment.splits(split, samples["split_hash"].to_numpy())
    return {
        "name": file.name,
        "split": split,
        **{name: facts[name] for name in ("sha256", "size", "stamp", "faults", "worst_run")},
        "repeated": [],
        **count_samples(samples, splits),
    }


def _find_tars(folder: Folder) -> list[FileStamp]:
    files = folder.files()
    tars = [file for file in files if file.name.endswith(".tar") and not file.name.startswith(".")]
    if tars:
        return tars
    where = f"no .tar in {folder.uri!r}"
    compressed = [file.name for file in files if file.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))]
    if compressed:
        remedy = f"decompress them ({compressed[0]}, ...): samples are read by their place in the tar"
    elif subfolders := [name for name in folder.subfolders() if name != FOLDER]:
        remedy = f"it has subfolders ({', '.join(subfolders[:5])}); name the one that holds the tars in data.tars"
    else:
        remedy = "import data first (python -m jobs.import_data --config ...), or name another folder in data.tars"
    raise DataError(f"{where}; {remedy}")


def _check_writable(folder: Folder) -> None:
    """Before hours of reading, not after."""
    probe = f"{FOLDER}/.writable"
    try:
        folder.write(probe, b"")
        folder.remove(probe)
    except (OSError, NotImplementedError) as error:
        remedy = "index the tars where they can be written beside; the index may then be served with them, read-only"
        raise DataError(f"no index can be written beside the tars of {folder.uri!r} ({error}); {remedy}") from error


def _map_shards(
    folder: Folder, files: Sequence[FileStamp], config: IndexConfig, assignment: Assignment, force: bool
) -> Iterator[Summary]:
    """The summaries of all shards, in the order in which they are done."""

    def run(row: dict[str, Any]) -> dict[str, Any]:
        file = FileStamp(row["name"], row["size"], row["stamp"])
        # As JSON: a column of Ray Data takes its type from the first rows.
        return {"summary": json.dumps(index_shard(folder, file, config, assignment, force))}

    items = [{"name": file.name, "size": file.size, "stamp": file.stamp} for file in files]
    for row in over_shards(items, run):
        yield json.loads(row["summary"])


def _unchanged(folder: Folder, file: FileStamp, config: IndexConfig) -> pa.Table | None:
    """The shard's samples of an earlier run, if they are of the same tar and settings."""
    if not file.stamp:
        return None
    try:
        table = read_table(folder.read(samples_file(file.name)))
    except (FileNotFoundError, NotADirectoryError, pa.ArrowException):
        return None
    facts = metadata(table)
    found = (facts.get("size"), facts.get("stamp"), facts.get("scan"))
    same = found == (file.size, file.stamp, config.scan) and table.column_names == SAMPLE_SCHEMA.names
    return table if same else None


def _repeated_keys(folder: Folder, shards: Sequence[Summary]) -> list[tuple[str, int, Fault]]:
    """(shard, row, fault) of samples whose key an earlier shard of the same split has, by shard and row."""
    repeats: list[tuple[str, int, Fault]] = []
    for split in SPLITS:
        of_split = [shard for shard in shards if shard["split"] == split]
        if len(of_split) < 2:
            continue
        names = [shard["name"] for shard in of_split]
        passes = -(-sum(_samples(shard) for shard in of_split) // _KEYS_PER_PASS)
        for number in range(passes):
            first: dict[str, str] = {}
            for name, rows in _equal_hashes(folder, names, number, passes):
                offsets = ["image_offset", "json_offset", "txt_offset"]
                samples = _read_samples(folder, name, ["key", *offsets]).take(pa.array(rows))
                for row, sample in zip(rows.tolist(), samples.to_pylist(), strict=True):
                    key = sample["key"]
                    if (earlier := first.setdefault(key, name)) != name:
                        detail = f"shard {earlier} has this key too; keys are unique within a split"
                        place = next(sample[offset] for offset in offsets if sample[offset] is not None)
                        fault = Fault(key, None, place, Reason.DUPLICATE_KEY, detail)
                        repeats.append((name, row, fault))
    return sorted(repeats, key=lambda repeat: repeat[:2])


def _equal_hashes(folder: Folder, shards: Sequence[str], number: int, passes: int) -> Iterator[tuple[str, np.ndarray]]:
    """(shard, rows) with a key whose hash occurs elsewhere too, among the hashes of pass ``number``."""

    def hashes_of(name: str) -> tuple[np.ndarray, np.ndarray]:
        hashes = _read_samples(folder, name, ["key_hash"])["key_hash"].to_numpy()
        rows = np.flatnonzero(hashes % np.uint64(passes) == number)
        return hashes[rows], rows.astype(np.int32)

    with ThreadPoolExecutor(_READERS) as pool:
        pieces = list(pool.map(hashes_of, shards))
    hashes = np.concatenate([piece[0] for piece in pieces])
    order = np.argsort(hashes)
    equal_to_next = hashes[order[1:]] == hashes[order[:-1]]
    repeated = np.zeros(len(hashes), np.bool_)
    repeated[order[1:][equal_to_next]] = True
    repeated[order[:-1][equal_to_next]] = True
    start = 0
    for name, (of_shard, rows) in zip(shards, pieces, strict=True):
        here = repeated[start : start + len(of_shard)]
        start += len(of_shard)
        if here.any():
            yield name, rows[here]


def _leave_out(folder: Folder, shard: Summary, rows: Sequence[int], assignment: Assignment) -> None:
    samples = without(_read_samples(folder, shard["name"], ["split_hash", "captions", "questions"]), rows)
    splits = assignment.splits(shard["split"], samples["split_hash"].to_numpy())
    shard |= {"repeated": list(rows), **count_samples(samples, splits)}


def _collect_faults(folder: Folder, shards: Sequence[Summary], more: list[dict[str, Any]]) -> pa.Table:
    names = [shard["name"] for shard in shards if shard["faults"]]
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda name: read_table(folder.read(faults_file(name))), names))
    tables = [table.replace_schema_metadata() for table in tables]
    together = pa.concat_tables([*tables, pa.Table.from_pylist(more, FAULT_SCHEMA)])
    return together.sort_by([("shard", "ascending"), ("offset", "ascending")])


def _check_limits(
    tars: str, facts: Mapping[str, Any], quarantine: pa.Table, worst_run: int, config: IndexConfig
) -> None:
    samples, faults = sum(facts["counts"].values()), quarantine.num_rows
    fraction = faults / (samples + faults) if faults else 0.0
    if not samples:
        problem, remedy = "holds no sound sample", "mend the tars"
    elif fraction > config.max_quarantine_fraction:
        limit = f"data.index.max_quarantine_fraction = {config.max_quarantine_fraction}"
        problem = f"has faults in {faults:,} of {samples + faults:,} samples ({fraction:.1%}), above {limit}"
        remedy = "mend the tars, or raise that limit"
    elif worst_run >= config.max_quarantine_run:
        limit = f"data.index.max_quarantine_run = {config.max_quarantine_run}"
        problem, remedy = f"has {worst_run:,} faults in a row, with {limit}", "mend the tars, or raise that limit"
    else:
        return
    for reason, members in ((Reason.MISSING_IMAGE, "texts"), (Reason.MISSING_TEXT, "images")):
        if 2 * facts["quarantine"].get(reason, 0) > samples + faults:
            remedy += (
                f"; or, if it is to hold {members} alone, set data.index.members={members} (data.mix.NAME.members)"
            )
    report = "\n".join(describe_faults(quarantine, facts["quarantine"]))
    shown = " and quarantine.html" if config.report else "; data.index.report=true shows them on a page"
    raise DataError(f"{tars!r} {problem}; {remedy}. All of them are in {FOLDER}/quarantine.parquet{shown}.\n{report}")


def _sweep(folder: Folder, tars: set[str]) -> None:
    """Delete the parts of tars that are gone, and what interrupted jobs left."""
    for part in ("samples", "faults"):
        for file in folder.files(f"{FOLDER}/{part}"):
            if file.name.removesuffix(".parquet") not in tars:
                folder.remove(f"{FOLDER}/{part}/{file.name}")


def _read_samples(folder: Folder, shard: str, columns: list[str]) -> pa.Table:
    return read_table(folder.read(samples_file(shard)), columns)


def _samples(shard: Summary) -> int:
    return sum(shard[f"samples_{split}"] for split in SPLITS)
