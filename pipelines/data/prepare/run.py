"""Prepares a data set from its source to its report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.data.index.files import to_parquet_bytes
from pipelines.data.index.index import Index
from pipelines.data.index.shard_pass import map_shards
from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.dropped import table_of_dropped_samples
from pipelines.data.prepare.files import BEGUN, DROPPED, FOLDER, LINEAGE, LOCK, MANIFEST, REPORT, WORK
from pipelines.data.prepare.filters import DropReason
from pipelines.data.prepare.language import require_known_languages
from pipelines.data.prepare.measure import measure_shard
from pipelines.data.prepare.report import render_preparation_page
from pipelines.data.prepare.selection import SampleSelection, select_samples
from pipelines.data.prepare.summary import PreparationSummary
from pipelines.data.prepare.write import ShardPlan, write_shard
from pipelines.data.tars.inputs import PAIRS
from pipelines.errors import DataError
from pipelines.report.progress import Progress
from pipelines.storage.folder import StorageFolder
from pipelines.storage.lock import hold_lock

_FORMAT = 1


def prepare_tars(tars: str, config: PrepareConfig, index_config: IndexConfig | None = None) -> PreparationSummary:
    """Prepare the tars of an indexed folder; continues an interrupted preparation, and does nothing if it is complete.

    The same source and settings give the same bytes.

    Args:
        index_config: for the index of the prepared tars, apart from its splits, which are the source's.

    Raises:
        DataError: the source has no index, has changed since, or holds no pairs; ``config.out`` holds something else,
            or another job is preparing it; an unknown language; or every sample would be dropped.
    """
    index, out = Index.open(tars), StorageFolder(config.out)
    if not all(index.input_requirements.get(name) for name in PAIRS):
        raise DataError(
            "only images with texts can be prepared, with other inputs beside them, and the samples of "
            f"{index.tars} were indexed as {json.dumps(index.validity_settings['inputs'])}; train on it as it is"
        )
    settings = config.model_dump(mode="json", exclude={"out"})
    identity = {"format": _FORMAT, "index": index.hash, "config": settings}
    if (done := _find_finished_preparation(index, out, identity)) is not None:
        return done
    require_known_languages(config.languages)
    with _lock_output_folder(out):
        # Again: another job may just have finished, or started another preparation.
        return _find_finished_preparation(index, out, identity) or _run_passes(
            index, out, identity, config, index_config or IndexConfig()
        )


def _lock_output_folder(out: StorageFolder) -> AbstractContextManager[None]:
    """Lock a local output folder against other prepare jobs while the block runs; object stores have no locks."""
    if not out.is_local:
        return nullcontext()
    busy = DataError(f"another job is preparing {out.uri!r}; wait until it has ended, or name another prepare.out")
    return hold_lock(Path(out.path(LOCK)), busy)


def _run_passes(
    index: Index, out: StorageFolder, identity: Mapping[str, Any], config: PrepareConfig, index_config: IndexConfig
) -> PreparationSummary:
    out.write(BEGUN, _to_json_bytes(identity))
    _measure_all_shards(index, config, out, hashlib.sha256(_to_json_bytes(identity)).hexdigest())
    selection = select_samples(index, config, out)
    if not selection.plans:
        raise DataError(f"all samples of {index.tars!r} would be dropped; {_keep_most_frequent(index, selection, out)}")
    _write_all_shards(index, selection.plans, config, out)

    dropped = table_of_dropped_samples(index, selection, out)
    out.write(DROPPED, to_parquet_bytes(dropped, {}))
    same = {"validation_fraction": index.split_assignment.fraction, "inputs": tuple(index.validity_settings["inputs"])}
    prepared = _index_prepared_tars(out, index_config.model_copy(update=same))
    summary = _summarize_preparation(index, prepared, selection, dropped)
    out.write(REPORT, render_preparation_page(summary, dropped, index, config).encode())
    out.write(MANIFEST, _to_json_bytes({**identity, "summary": summary.to_json_tree()}))
    _delete_work_files(out)
    return summary


def _find_finished_preparation(
    index: Index, out: StorageFolder, identity: Mapping[str, Any]
) -> PreparationSummary | None:
    """Return the summary of the preparation that ``identity`` describes if ``out`` holds it complete, else None.

    Raises:
        DataError: ``out`` holds another preparation, or other files.
    """
    if out.uri == index.folder.uri:
        raise DataError(f"prepare.out is data.tars itself, {out.uri!r}; name another folder")
    remedy = "choose another folder for prepare.out, or remove this one to prepare anew"
    if not out.exists(BEGUN):
        if tars := [file.name for file in out.files() if file.name.endswith(".tar")]:
            raise DataError(f"{out.uri!r} holds {tars[0]}, which no preparation wrote; {remedy}")
        return None
    try:
        stored = json.loads(out.read(BEGUN))
        done = json.loads(out.read(MANIFEST)) if out.exists(MANIFEST) else None
    except ValueError as error:
        raise DataError(f"{BEGUN} or {MANIFEST} of {out.uri!r} cannot be read ({error}); {remedy}") from None
    if stored != identity:
        raise DataError(
            f"{out.uri!r} holds another preparation ({_describe_first_difference(stored, identity)}); {remedy}"
        )
    if done is None:
        return None
    Index.open(out.uri)
    _delete_work_files(out)
    return PreparationSummary(**done["summary"])


def _describe_first_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if stored.get("format") != wanted["format"]:
        return "of another version"
    old, new = stored.get("config", {}), wanted["config"]
    for name in new:
        if old.get(name) != new[name]:
            return f"prepare.{name} is {old.get(name)!r} there and {new[name]!r} here"
    return "of other data: the index of data.tars is another one"


def _measure_all_shards(index: Index, config: PrepareConfig, out: StorageFolder, identity: str) -> None:
    def run(row: dict[str, Any]) -> dict[str, Any]:
        measure_shard(index, row["shard"], config, out, identity)
        return row

    items = [{"shard": shard.name} for shard in index.shards]
    with Progress("measure") as progress:
        for done, _ in enumerate(map_shards(items, run), 1):
            progress(done, len(items))


def _write_all_shards(index: Index, plans: Sequence[ShardPlan], config: PrepareConfig, out: StorageFolder) -> None:
    def run(row: dict[str, Any]) -> dict[str, Any]:
        plan = ShardPlan(**json.loads(row["plan"]))
        write_shard(index, plan, config, out)
        return {"name": plan.name}

    # As JSON: a column of Ray Data takes its type from the first rows.
    items = [{"plan": json.dumps(asdict(plan))} for plan in plans]
    with Progress("write") as progress:
        for done, _ in enumerate(map_shards(items, run), 1):
            progress(done, len(items))


def _index_prepared_tars(out: StorageFolder, config: IndexConfig) -> Index:
    with Progress("index") as progress:
        return build_index(out.uri, config, report_progress=progress)


def _delete_work_files(out: StorageFolder) -> None:
    """Delete the passes' work files, and partial files of killed jobs."""
    out.remove_folder(WORK)
    for folder in ("", FOLDER, LINEAGE):
        for file in out.files(folder):
            if file.name.startswith(".") and file.name.endswith(".partial"):  # as StorageFolder.write names them
                out.remove(f"{folder}/{file.name}" if folder else file.name)


def _summarize_preparation(
    index: Index, prepared: Index, selection: SampleSelection, dropped: pa.Table
) -> PreparationSummary:
    counts = {str(reason): dict.fromkeys(index.counts(), 0) for reason in DropReason}
    for row in dropped.group_by(["reason", "split"]).aggregate([([], "count_all")]).to_pylist():
        counts[row["reason"]][row["split"]] = row["count_all"]
    return PreparationSummary(
        tars=index.tars,
        out=prepared.tars,
        before=index.counts(),
        after=prepared.counts(),
        bytes_before=sum(shard.size for shard in index.shards),
        bytes_after=sum(shard.size for shard in prepared.shards),
        shards_before=len(index.shards),
        shards_after=len(prepared.shards),
        dropped=counts,
        quarantined=index.quarantine_counts(),
        texts_left_out=selection.texts_left_out,
        joined=selection.duplicates_with_moved_texts,
        rewritten=selection.rewritten,
    )


def _keep_most_frequent(index: Index, selection: SampleSelection, out: StorageFolder) -> str:
    dropped = table_of_dropped_samples(index, selection, out)
    reasons, counts = np.unique(np.array(dropped["reason"].to_pylist()), return_counts=True)
    example = dropped.slice(0, 1).to_pylist()[0]
    listed = ", ".join(f"{count:,} {reason}" for reason, count in zip(reasons, counts, strict=True))
    return f"{listed}, as {example['key']!r}: {example['detail']}. Allow more in prepare, and remove {out.uri!r}"


def _to_json_bytes(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=1, sort_keys=True).encode()
