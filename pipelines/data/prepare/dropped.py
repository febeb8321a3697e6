"""Lists the samples that a preparation dropped, each with its reason and, for a duplicate, the sample that it
repeats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data.index.files import read_table
from pipelines.data.index.index import Index
from pipelines.data.prepare.files import DROPPED_SCHEMA, measurements_file
from pipelines.data.prepare.filters import DropReason
from pipelines.data.prepare.selection import SampleSelection
from pipelines.storage.folder import StorageFolder


def table_of_dropped_samples(index: Index, selection: SampleSelection, out: StorageFolder) -> pa.Table:
    """Build the table of dropped samples (``DROPPED_SCHEMA``), sorted by shard and row of the source."""
    samples = selection.samples
    originals_N = np.maximum(selection.duplicate_of_N, selection.near_duplicate_of_N)
    keys = _sample_keys_by_number(index, selection, np.unique(originals_N[originals_N >= 0]))
    table_rows: list[dict[str, Any]] = []
    for shard, rows, numbers in samples.split_by_shard(np.flatnonzero(selection.is_dropped)):
        of_index = index.rows(shard).select(["key", "split"]).take(pa.array(rows)).to_pylist()
        measured = read_table(out.read(measurements_file(shard)), ["reason", "detail"]).take(pa.array(rows)).to_pylist()
        for row, number, sample, outcome in zip(rows.tolist(), numbers.tolist(), of_index, measured, strict=True):
            location = {"shard": shard, "row": row, **sample}
            if (original := int(originals_N[number])) >= 0:
                outcome = _describe_duplicate(selection, number, original, keys[original])
            table_rows.append({**location, **outcome})
    return pa.Table.from_pylist(table_rows, DROPPED_SCHEMA)


def _describe_duplicate(selection: SampleSelection, number: int, original: int, key: str) -> dict[str, Any]:
    same = selection.duplicate_of_N[number] >= 0
    shard, row = selection.samples.locate_sample(original)
    where = f"{key} of {selection.samples.splits[original]}, in {shard}"
    return {
        "reason": str(DropReason.DUPLICATE if same else DropReason.NEAR_DUPLICATE),
        "detail": f"{'has the image of' if same else 'looks like'} {where}",
        "original_shard": shard,
        "original_row": row,
        "original_key": key,
    }


def _sample_keys_by_number(index: Index, selection: SampleSelection, numbers: np.ndarray) -> dict[int, str]:
    """Look up the keys of the samples with these numbers."""
    keys: dict[int, str] = {}
    for shard, rows, of_shard in selection.samples.split_by_shard(numbers):
        keys |= dict(zip(of_shard.tolist(), index.rows(shard)["key"].take(pa.array(rows)).to_pylist(), strict=True))
    return keys
