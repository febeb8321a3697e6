"""Measures how well an epoch is shuffled, and how many reads its order takes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipelines.data.stream.plan import SampleIndices, ShufflePlan

_RANGES, _LENGTH = 16, 256


class ShuffleQuality(NamedTuple):
    """Metrics of the order of an epoch.

    Attributes:
        rank_correlation: of a sample's position in the order with that in the tars (Spearman); 0 for a random order, 1
            for that of the tars.
        neighbour_distance: mean distance in the tars of neighbours in the order, as a share of that of a random order
            (a third of the samples); 1 for a random order, nearly 0 for that of the tars.
        reads_per_batch: contiguous ranges of tars that a batch is read in; at most its samples.
    """

    rank_correlation: float
    neighbour_distance: float
    reads_per_batch: float


def shuffle_quality(plan: ShufflePlan, epoch: int, batch: int) -> ShuffleQuality:
    """Measure how well an epoch is shuffled; a long epoch is measured in evenly spaced ranges to bound the cost."""
    origin = epoch * plan.size
    if plan.size <= _RANGES * _LENGTH:
        starts, length = np.array([0]), plan.size
    else:
        starts, length = np.linspace(0, plan.size - _LENGTH, _RANGES).astype(np.int64), _LENGTH
    ranges = [plan.samples_between(int(origin + start), int(origin + start + length)) for start in starts]
    first_of_shard = np.cumsum(plan.counts) - plan.counts
    stored_positions = [first_of_shard[indices.shard] + indices.row for indices in ranges]
    steps = np.concatenate([np.abs(np.diff(positions)) for positions in stored_positions])
    random = max(plan.size / 3, 1.0)
    return ShuffleQuality(
        _compute_rank_correlation(np.concatenate(stored_positions)),
        float(steps.mean() / random) if len(steps) else 1.0,
        float(
            np.mean(
                [_count_reads(indices[at : at + batch]) for indices in ranges for at in range(0, len(indices), batch)]
            )
        ),
    )


def _compute_rank_correlation(stored_positions: np.ndarray) -> float:
    if len(stored_positions) < 2:
        return 0.0
    rank = np.argsort(np.argsort(stored_positions))
    return float(np.corrcoef(rank, np.arange(len(rank)))[0, 1])


def _count_reads(indices: SampleIndices) -> int:
    order = np.lexsort((indices.row, indices.shard))
    shard, row = indices.shard[order], indices.row[order]
    is_contiguous = (np.diff(shard) == 0) & (np.diff(row) <= 1)
    return len(row) - int(is_contiguous.sum())
