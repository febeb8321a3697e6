"""How well an epoch is shuffled, and what its order costs to read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipelines.data.stream.plan import Plan, SampleIndices

_STRETCHES, _LENGTH = 16, 256


class Shuffling(NamedTuple):
    """Figures of an epoch's order.

    Attributes:
        rank_correlation: of a sample's place in the order with its place in the tars (Spearman); 0 for a random order,
            1 for that of the tars.
        neighbour_distance: how far neighbours in the order lie apart in the tars, as a share of what a random order
            gives, a third of the samples; 1 for a random order, nearly 0 for that of the tars.
        reads_per_batch: stretches of tars that a batch is read in; its samples at most.
    """

    rank_correlation: float
    neighbour_distance: float
    reads_per_batch: float


def shuffling(plan: Plan, epoch: int, batch: int) -> Shuffling:
    """Figures of an epoch; of a sample of its stretches where it is long, so that they cost the same for any size."""
    origin = epoch * plan.size
    if plan.size <= _STRETCHES * _LENGTH:
        begins, length = np.array([0]), plan.size
    else:
        begins, length = np.linspace(0, plan.size - _LENGTH, _STRETCHES).astype(np.int64), _LENGTH
    stretches = [plan.take(int(origin + begin), int(origin + begin + length)) for begin in begins]
    first_of_shard = np.cumsum(plan.counts) - plan.counts
    stored = [first_of_shard[taken.shard] + taken.row for taken in stretches]
    steps = np.concatenate([np.abs(np.diff(places)) for places in stored])
    random = max(plan.size / 3, 1.0)
    return Shuffling(
        _rank_correlation(np.concatenate(stored)),
        float(steps.mean() / random) if len(steps) else 1.0,
        float(np.mean([_reads(taken[at : at + batch]) for taken in stretches for at in range(0, len(taken), batch)])),
    )


def _rank_correlation(stored: np.ndarray) -> float:
    if len(stored) < 2:
        return 0.0
    rank = np.argsort(np.argsort(stored))
    return float(np.corrcoef(rank, np.arange(len(rank)))[0, 1])


def _reads(taken: SampleIndices) -> int:
    order = np.lexsort((taken.row, taken.shard))
    shard, row = taken.shard[order], taken.row[order]
    together = (np.diff(shard) == 0) & (np.diff(row) <= 1)
    return len(row) - int(together.sum())
