"""Building the index: a Ray Data pass with one task a shard, then what only all shards together can tell.

A task writes its shard's part of the index with the hash and the stamp of the tar inside. So a job that is interrupted
goes on where it was, and a shard with an unchanged stamp is not read again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data.index.files import (
    FOLDER,
    FORMAT,
    SHARD_SCHEMA,
    Part,
    count_samples,
    faults_file,
    metadata,
    quarantine_file,
    read_table,
    samples_file,
    scan_digits,
    table_bytes,
    version_file,
    without,
)
from pipelines.data.index.index import Assignment, Index, IndexConfig, index_hash
from pipelines.data.index.quarantine import describe_faults, reason_counts
from pipelines.data.index.quarantine_page import quarantine_page
from pipelines.data.index.scan import FAULT_SCHEMA, Fault, fault_table, scan_tar
from pipelines.data.index.shard_pass import over_shards
from pipelines.data.index.survey import survey
from pipelines.data.tars.errors import Reason
from pipelines.data.tars.shards import SPLITS, shard_split, shard_splits
from pipelines.errors import DataError
from pipelines.storage.folder import FileStamp, Folder

Summary = dict[str, Any]

# Above this many samples, keys are compared in several passes over ranges of their hashes: 8 bytes each, a few copies.
_KEYS_PER_PASS = 50_000_000
_READERS = 16
_VERSIONS = 100

log = logging.getLogger(__name__)


def build(tars: str, config: IndexConfig, *, force: bool, report_progress: Callable[[int, int], None] | None) -> Index:
    """See ``pipelines.data.index.index.build_index``."""
    folder = Folder(tars)
    files = _find_tars(folder)
    _check_writable(folder)
    earlier = _newest(folder)
    splits = shard_splits([file.name for file in files], config.splits)
    assignment = Assignment(0.0 if "val" in splits.values() else config.validation_fraction)

    summaries: dict[str, Summary] = {}
    lost: list[dict[str, Any]] = [
        Fault(None, None, None, Reason.UNREADABLE_SHARD, "a folder, and no tar").row(name)
        for name in folder.subfolders()
        if name.endswith(".tar")
    ]
    folders = len(lost)
    for summary in _map_shards(folder, files, config, assignment, force or config.force):
        if "unreadable" in summary:
            fault = Fault(None, None, None, Reason.UNREADABLE_SHARD, summary["unreadable"])
            lost.append(fault.row(summary["name"]))
        else:
            summaries[summary["name"]] = summary
        if report_progress is not None:
            report_progress(len(summaries) + len(lost) - folders, len(files))

    shards = [summaries[name] for name in sorted(summaries)]
    repeats = _repeated_keys(folder, shards)
    for name, of_shard in groupby(repeats, key=lambda repeat: repeat[0]):
        _leave_out(folder, summaries[name], [row for _, row, _ in of_shard], assignment)
    quarantine = _collect_faults(folder, shards, [*lost, *(fault.row(name) for name, _, fault in repeats)])

    counts = {split: sum(s[f"samples_{split}"] for s in shards) for split in SPLITS}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "hash": index_hash([(s["name"], s["sha256"], s["split"]) for s in shards], config.scan, assignment),
        "scan": config.scan,
        "validation_fraction": assignment.fraction,
        "counts": counts,
        "quarantine": reason_counts(quarantine),
        "passed_over": dict(sum((Counter(s["passed_over"]) for s in shards), Counter())),
        "survey": survey(shards, partial(_read_samples, folder), assignment.splits, _READERS),
    }
    folder.write(quarantine_file(), table_bytes(quarantine, {"hash": facts["hash"]}))
    if config.report:
        folder.write(f"{FOLDER}/quarantine.html", quarantine_page(folder, quarantine, counts).encode())
    _check_limits(tars, facts, quarantine, shards, config, has_index=bool(earlier))
    columns = [{name: shard[name] for name in SHARD_SCHEMA.names} for shard in shards]
    table = pa.Table.from_pylist(columns, SHARD_SCHEMA)
    folder.write(quarantine_file(facts["hash"]), table_bytes(quarantine, {"hash": facts["hash"]}))
    folder.write(version_file(facts["hash"]), table_bytes(table, facts))
    versions = [*(version for version in earlier if version != facts["hash"]), facts["hash"]]
    newest = {**facts, "versions": versions[-_VERSIONS:]}
    folder.write(f"{FOLDER}/index.json", json.dumps(newest, indent=1, sort_keys=True).encode())
    hashes = {shard["name"]: shard["sha256"] for shard in shards}
    _sweep(folder, {file.name: hashes.get(file.name, "") for file in files}, versions[:-_VERSIONS])
    return Index.open(tars)


def index_shard(
    folder: Folder,
    file: FileStamp,
    config: IndexConfig,
    assignment: Assignment,
    force: bool = False,
    parts: Sequence[str] | None = None,
) -> Summary:
    """Write one shard's part of the index, unless there is one of the same tar and settings.

    Args:
        parts: names of the parts of this shard that there are; looked up if not given.

    Returns:
        its row of ``SHARD_SCHEMA``, ``worst_run`` and ``passed_over``; or ``name`` and ``unreadable``, what kept it
        from being read.
    """
    parts = _parts(folder).get(file.name, []) if parts is None else parts
    samples = None if force else _unchanged(folder, file, config, parts)
    if samples is None:
        try:
            before = folder.stamp(file.name)
            with folder.stream(file.name, file.size) as stream:
                scan = scan_tar(stream.read, **config.scan)
            if folder.stamp(file.name) != before:
                raise OSError("it changed while it was read; run the index job again")
        except OSError as error:
            return {"name": file.name, "unreadable": f"{type(error).__name__}: {error}"}
        facts: dict[str, Any] = {
            "part": Part(file.name, scan.sha256[:16], scan_digits(config.scan)).name,
            "sha256": scan.sha256,
            "size": scan.size,
            "stamp": file.stamp,
            "scan": config.scan,
            "faults": len(scan.faults),
            "worst_run": scan.worst_run,
            "passed_over": scan.passed_over,
        }
        # The samples file comes last: it vouches for the faults.
        if scan.faults:
            folder.write(faults_file(facts["part"]), table_bytes(fault_table(file.name, scan.faults), {}))
        folder.write(samples_file(facts["part"]), table_bytes(scan.samples, facts))
        samples = scan.samples.replace_schema_metadata({"facts": json.dumps(facts)})
    facts = metadata(samples)
    split = shard_split(file.name, config.splits)
    splits = assignment.splits(split, samples["split_hash"].to_numpy())
    return {
        "name": file.name,
        "split": split,
        **{name: facts[name] for name in ("part", "sha256", "size", "stamp", "faults", "worst_run", "passed_over")},
        "repeated": [],
        **count_samples(samples, splits),
    }


def _newest(folder: Folder) -> list[str]:
    """Hashes of the versions that there are, the newest last; says so where they are of another format."""
    try:
        facts = json.loads(folder.read(f"{FOLDER}/index.json"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return []
    if facts.get("format") != FORMAT:
        found = facts.get("format")
        log.warning("the index of %s is of format %s and is made anew, of format %s", folder.uri, found, FORMAT)
        return []
    versions: list[str] = facts["versions"]
    return versions


def _parts(folder: Folder) -> dict[str, list[str]]:
    """Names of the parts that there are, by shard."""
    parts: dict[str, list[str]] = {}
    for file in folder.files(f"{FOLDER}/samples"):
        if part := Part.parse(file.name):
            parts.setdefault(part.shard, []).append(part.name)
    return parts


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
        return {"summary": json.dumps(index_shard(folder, file, config, assignment, force, json.loads(row["parts"])))}

    parts = _parts(folder)
    items = [
        {"name": file.name, "size": file.size, "stamp": file.stamp, "parts": json.dumps(parts.get(file.name, []))}
        for file in files
    ]
    for row in over_shards(items, run):
        yield json.loads(row["summary"])


def _unchanged(folder: Folder, file: FileStamp, config: IndexConfig, parts: Sequence[str]) -> pa.Table | None:
    """The shard's samples of an earlier run, if they are of the same tar and settings."""
    if not file.stamp:
        return None
    for part in parts:
        if not part.endswith(f"-{scan_digits(config.scan)}"):
            continue
        try:
            table = read_table(folder.read(samples_file(part)))
        except (FileNotFoundError, pa.ArrowException):
            continue
        facts = metadata(table)
        if (facts.get("size"), facts.get("stamp"), facts.get("scan")) == (file.size, file.stamp, config.scan):
            return table
    return None


def _repeated_keys(folder: Folder, shards: Sequence[Summary]) -> list[tuple[str, int, Fault]]:
    """(shard, row, fault) of samples whose key an earlier shard of the same split has, by shard and row."""
    repeats: list[tuple[str, int, Fault]] = []
    for split in SPLITS:
        of_split = [shard for shard in shards if shard["split"] == split]
        if len(of_split) < 2:
            continue
        parts = {shard["name"]: shard["part"] for shard in of_split}
        passes = -(-sum(_samples(shard) for shard in of_split) // _KEYS_PER_PASS)
        for number in range(passes):
            first: dict[str, str] = {}
            for name, rows in _equal_hashes(folder, parts, number, passes):
                offsets = ["image_offset", "json_offset", "txt_offset"]
                samples = _read_samples(folder, parts[name], ["key", *offsets]).take(pa.array(rows))
                for row, sample in zip(rows.tolist(), samples.to_pylist(), strict=True):
                    key = sample["key"]
                    if (earlier := first.setdefault(key, name)) != name:
                        detail = f"shard {earlier} has this key too; keys are unique within a split"
                        place = next(sample[offset] for offset in offsets if sample[offset] is not None)
                        fault = Fault(key, None, place, Reason.DUPLICATE_KEY, detail)
                        repeats.append((name, row, fault))
    return sorted(repeats, key=lambda repeat: repeat[:2])


def _equal_hashes(
    folder: Folder, parts: Mapping[str, str], number: int, passes: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(shard, rows) with a key whose hash occurs elsewhere too, among the hashes of pass ``number``."""

    def hashes_of(part: str) -> tuple[np.ndarray, np.ndarray]:
        hashes = _read_samples(folder, part, ["key_hash"])["key_hash"].to_numpy()
        rows = np.flatnonzero(hashes % np.uint64(passes) == number)
        return hashes[rows], rows.astype(np.int32)

    with ThreadPoolExecutor(_READERS) as pool:
        pieces = list(pool.map(hashes_of, parts.values()))
    hashes = np.concatenate([piece[0] for piece in pieces])
    order = np.argsort(hashes)
    equal_to_next = hashes[order[1:]] == hashes[order[:-1]]
    repeated = np.zeros(len(hashes), np.bool_)
    repeated[order[1:][equal_to_next]] = True
    repeated[order[:-1][equal_to_next]] = True
    start = 0
    for name, (of_shard, rows) in zip(parts, pieces, strict=True):
        here = repeated[start : start + len(of_shard)]
        start += len(of_shard)
        if here.any():
            yield name, rows[here]


def _leave_out(folder: Folder, shard: Summary, rows: Sequence[int], assignment: Assignment) -> None:
    samples = without(_read_samples(folder, shard["part"], ["split_hash", "captions", "questions"]), rows)
    splits = assignment.splits(shard["split"], samples["split_hash"].to_numpy())
    shard |= {"repeated": list(rows), **count_samples(samples, splits)}


def _collect_faults(folder: Folder, shards: Sequence[Summary], more: list[dict[str, Any]]) -> pa.Table:
    parts = [shard["part"] for shard in shards if shard["faults"]]
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda part: read_table(folder.read(faults_file(part))), parts))
    tables = [table.replace_schema_metadata() for table in tables]
    together = pa.concat_tables([*tables, pa.Table.from_pylist(more, FAULT_SCHEMA)])
    return together.sort_by([("shard", "ascending"), ("offset", "ascending")])


def _check_limits(
    tars: str,
    facts: Mapping[str, Any],
    quarantine: pa.Table,
    shards: Sequence[Summary],
    config: IndexConfig,
    *,
    has_index: bool,
) -> None:
    worst_run = max((shard["worst_run"] for shard in shards), default=0)
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
    if worst := _worst_tars(quarantine, shards):
        problem += f" (most in {worst})"
    if has_index:
        remedy += "; until then the index that was there before stays in use, without what came since"
    report = "\n".join(describe_faults(quarantine, facts["quarantine"]))
    shown = " and quarantine.html" if config.report else "; data.index.report=true shows them on a page"
    raise DataError(f"{tars!r} {problem}; {remedy}. All of them are in {FOLDER}/quarantine.parquet{shown}.\n{report}")


def _worst_tars(quarantine: pa.Table, shards: Sequence[Summary]) -> str:
    """The tars that have the most faults and mostly these, where other tars have not: they may be taken out."""
    samples = {shard["name"]: _samples(shard) for shard in shards}
    faults = Counter(quarantine["shard"].to_pylist())
    bad = [name for name, count in faults.most_common() if count > samples.get(name, 0)]
    worst = bad[:3] if samples.keys() - set(bad) else []
    return ", ".join(f"{name!r}: {faults[name]:,} of {faults[name] + samples.get(name, 0):,}" for name in worst)


def _sweep(folder: Folder, tars: Mapping[str, str], versions: Sequence[str]) -> None:
    """Delete the oldest versions, the parts of tars that are gone or are others now, and what interrupted jobs left.

    Args:
        tars: sha256 of each tar that is there; "" where that is not known.
        versions: hashes of those to delete.
    """
    for version in versions:
        folder.remove(version_file(version))
        folder.remove(quarantine_file(version))
    for kind in ("samples", "faults"):
        for file in folder.files(f"{FOLDER}/{kind}"):
            part = Part.parse(file.name)
            sha256 = tars.get(part.shard) if part else None
            if part is None or sha256 is None or (sha256 and sha256[:16] != part.sha256):
                folder.remove(f"{FOLDER}/{kind}/{file.name}")
    folder.remove(f"{FOLDER}/shards.parquet")  # of format 1


def _read_samples(folder: Folder, part: str, columns: list[str]) -> pa.Table:
    return read_table(folder.read(samples_file(part)), columns)


def _samples(shard: Summary) -> int:
    return sum(shard[f"samples_{split}"] for split in SPLITS)
