"""Decides from the measurements of all samples which are duplicates, and in which shard each of the others is
stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.data.index.files import read_table
from pipelines.data.index.index import Index
from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.duplicates import find_exact_duplicates, find_near_duplicates
from pipelines.data.prepare.files import measurements_file
from pipelines.data.prepare.layout import assign_shard_numbers
from pipelines.data.prepare.write import SampleLocation, ShardPlan
from pipelines.data.tars.shards import SHARD_BYTES, SPLITS, shard_name
from pipelines.storage.folder import StorageFolder


@dataclass(frozen=True)
class IndexedSamples:
    """The N samples of an index, numbered in the order of shard and row.

    Attributes:
        shards: names of the index's shards.
        starts: the number of the first sample of each shard.
        splits: of each sample.
    """

    shards: list[str]
    starts: NDArray[np.int64]
    splits: NDArray[np.str_]

    def locate_sample(self, number: int) -> SampleLocation:
        """Return the shard and the row of a sample."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.shards[shard], number - int(self.starts[shard])

    def split_by_shard(self, numbers: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
        """Split ascending sample numbers by shard; yields the shard, the rows in it and their numbers."""
        of_shard = np.searchsorted(self.starts, numbers, side="right") - 1
        for piece in _find_runs_of_equal_values(of_shard):
            shard = of_shard[piece.start]
            yield self.shards[shard], numbers[piece] - self.starts[shard], numbers[piece]


@dataclass(frozen=True)
class SampleSelection:
    """Which of N samples are kept, and in which shards.

    Attributes:
        invalid_N: whether a filter dropped the sample.
        duplicate_of_N: the sample with the same inputs, -1 for none.
        near_duplicate_of_N: the sample with a similar image, -1 for none.
        plans: the shards to be written.
        texts_left_out, rewritten: see ``PreparationSummary``.
    """

    samples: IndexedSamples
    invalid_N: NDArray[np.bool_]
    duplicate_of_N: NDArray[np.int64]
    near_duplicate_of_N: NDArray[np.int64]
    plans: list[ShardPlan]
    texts_left_out: int
    rewritten: int

    @property
    def is_dropped(self) -> NDArray[np.bool_]:
        """Mask the samples that are absent from the prepared set."""
        return self.invalid_N | (self.duplicate_of_N >= 0) | (self.near_duplicate_of_N >= 0)

    @property
    def duplicates_with_moved_texts(self) -> int:
        """Duplicates whose texts are moved to the sample that is kept."""
        return sum(len(locations) for plan in self.plans for _, locations in plan.joining)


def select_samples(index: Index, config: PrepareConfig, out: StorageFolder) -> SampleSelection:
    """Select which samples are kept, from the measurements in ``out``. Takes some hundred bytes of memory a sample."""
    tables = [_read_measurements(index, shard.name, out) for shard in index.shards]
    starts = np.cumsum([0, *(table.num_rows for table in tables)])[:-1]
    table = pa.concat_tables(tables)
    del tables
    splits = table["split"].to_numpy().astype("<U5")
    samples = IndexedSamples([shard.name for shard in index.shards], starts, splits)
    invalid_N = table["invalid"].to_numpy()
    valid = np.flatnonzero(~invalid_N)

    duplicate_of_N, near_duplicate_of_N = np.full(len(splits), -1, np.int64), np.full(len(splits), -1, np.int64)
    if config.duplicates:
        inputs_N = table["inputs"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        first = find_exact_duplicates(splits[valid], inputs_N[valid])
        duplicate_of_N[valid] = np.where(first < 0, -1, valid[first])
    if config.near_duplicates:
        hashes_N = table["hash"].to_numpy()
        original = find_near_duplicates(
            splits[valid], hashes_N[valid], config.near_duplicates, candidates=duplicate_of_N[valid] < 0
        )
        near_duplicate_of_N[valid] = np.where(original < 0, -1, valid[original])

    is_kept_N = ~invalid_N & (duplicate_of_N < 0) & (near_duplicate_of_N < 0)
    plans = _plan_shards(samples, is_kept_N, duplicate_of_N, table["stored"].to_numpy(), config)
    left_out, rewritten = (int(table[name].to_numpy()[is_kept_N].sum()) for name in ("left_out", "rewritten"))
    return SampleSelection(samples, invalid_N, duplicate_of_N, near_duplicate_of_N, plans, left_out, rewritten)


def _read_measurements(index: Index, shard: str, out: StorageFolder) -> pa.Table:
    rows = index.rows(shard)
    measured = read_table(out.read(measurements_file(shard)), ["reason", "left_out", "hash", "stored", "part"])
    columns = {name: measured[name].fill_null(0) for name in ("left_out", "hash", "stored")}
    columns |= {"invalid": measured["reason"].is_valid(), "rewritten": measured["part"].is_valid()}
    # Samples are duplicates where all their inputs are the same.
    sha256s = [rows[f"{name}.sha256"] for name in index.inputs]
    inputs = pc.binary_join_element_wise(*sha256s, ",", null_handling="replace")
    return pa.table({"split": rows["split"], "inputs": inputs, **columns})


def _plan_shards(
    samples: IndexedSamples,
    is_kept_N: NDArray[np.bool_],
    duplicate_of_N: NDArray[np.int64],
    stored_N: NDArray[np.int64],
    config: PrepareConfig,
) -> list[ShardPlan]:
    duplicates_of: dict[int, list[int]] = defaultdict(list)
    for number in np.flatnonzero(duplicate_of_N >= 0).tolist():
        original = int(duplicate_of_N[number])
        # Samples of val and test get no texts of training samples.
        if is_kept_N[original] and samples.splits[original] == "train":
            duplicates_of[original].append(number)
    plans = []
    for split in SPLITS:
        of_split = np.flatnonzero(is_kept_N & (samples.splits == split))
        shard_of = assign_shard_numbers(stored_N[of_split], config.samples_per_shard, SHARD_BYTES)
        for number, piece in enumerate(_find_runs_of_equal_values(shard_of)):
            in_shard = of_split[piece]
            runs = [(shard, rows.tolist()) for shard, rows, _ in samples.split_by_shard(in_shard)]
            joining = [
                (n, [samples.locate_sample(other) for other in duplicates_of[sample]])
                for n, sample in enumerate(in_shard.tolist())
                if sample in duplicates_of
            ]
            plans.append(ShardPlan(shard_name(split, number), runs, joining))
    return plans


def _find_runs_of_equal_values(values: NDArray[np.int64]) -> Iterator[slice]:
    """Return the slices of an array that hold runs of equal values."""
    if len(values):
        edges = np.flatnonzero(np.diff(values)) + 1
        for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(values)], strict=True):
            yield slice(start, stop)
