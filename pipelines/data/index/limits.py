"""Checks that an index has no more faults than are tolerated."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.data.index.config import IndexConfig
from pipelines.data.index.files import FOLDER, total_sample_count
from pipelines.data.index.index_shard import Summary
from pipelines.data.index.quarantine import describe_faults
from pipelines.data.tars.errors import missing_input_reason
from pipelines.data.tars.inputs import input_requirements
from pipelines.errors import DataError


def require_tolerable_faults(
    tars: str,
    facts: Mapping[str, Any],
    quarantine: pa.Table,
    shards: Sequence[Summary],
    config: IndexConfig,
    *,
    has_index: bool,
) -> None:
    """Raise DataError if no sample is valid, or if there are more faults than the settings tolerate.

    Args:
        has_index: whether there is an earlier version of the index.
    """
    worst_run = max((shard["worst_run"] for shard in shards), default=0)
    samples, faults = sum(facts["counts"].values()), quarantine.num_rows
    fraction = faults / (samples + faults) if faults else 0.0
    if not samples:
        problem, remedy = "has no valid sample", "repair the tars"
    elif fraction > config.max_quarantine_fraction:
        limit = f"data.index.max_quarantine_fraction = {config.max_quarantine_fraction}"
        problem = f"has faults in {faults:,} of {samples + faults:,} samples ({fraction:.1%}), above {limit}"
        remedy = "repair the tars, or raise that limit"
    elif worst_run >= config.max_quarantine_run:
        limit = f"data.index.max_quarantine_run = {config.max_quarantine_run}"
        problem, remedy = f"has {worst_run:,} faults in a row, with {limit}", "repair the tars, or raise that limit"
    else:
        return
    for name, is_required in input_requirements(config.inputs).items():
        others = [other for other in config.inputs if other != name]
        missing = facts["quarantine"].get(missing_input_reason(name), 0)
        if is_required and others and 2 * missing > samples + faults:
            remedy += (
                f"; or, if they are to do without the input {name!r}, set data.index.inputs (data.mix.NAME.inputs) to "
                f"{json.dumps([*others, f'{name}?'])}, where it may be missing, or to {json.dumps(others)}"
            )
    if worst := _describe_worst_tars(quarantine, shards):
        problem += f" (most in {worst})"
    if has_index:
        remedy += "; until then the earlier index stays in use, without the new tars"
    report = "\n".join(describe_faults(quarantine, facts["quarantine"]))
    shown = " and quarantine.html" if config.report else "; data.index.report=true shows them on a page"
    raise DataError(f"{tars!r} {problem}; {remedy}. All of them are in {FOLDER}/quarantine.parquet{shown}.\n{report}")


def _describe_worst_tars(quarantine: pa.Table, shards: Sequence[Summary]) -> str:
    """Name up to three tars that are mostly faults, unless all are: these may be removed."""
    samples = {shard["name"]: total_sample_count(shard) for shard in shards}
    faults = Counter(quarantine["shard"].to_pylist())
    bad = [name for name, count in faults.most_common() if count > samples.get(name, 0)]
    worst = bad[:3] if samples.keys() - set(bad) else []
    return ", ".join(f"{name!r}: {faults[name]:,} of {faults[name] + samples.get(name, 0):,}" for name in worst)
