"""Figures of shuffling: the known values of an order that is none and of a random one, and the trade-off between."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.data.stream.plan import ShufflePlan
from pipelines.data.stream.shuffle_quality import shuffle_quality

BATCH = 64


def plan(shards: int = 200, samples: int = 500, **more: object) -> ShufflePlan:
    return ShufflePlan("an index", np.full(shards, samples), 0, **more)  # type: ignore[arg-type]


def test_the_order_of_the_tars() -> None:
    found = shuffle_quality(plan(shuffle=False), 0, BATCH)
    assert found.rank_correlation == pytest.approx(1.0)
    assert found.neighbour_distance < 1e-3
    assert found.reads_per_batch < 1.5


@pytest.mark.parametrize("size", [(200, 500), (3, 500)])
def test_a_random_order(size: tuple[int, int]) -> None:
    found = shuffle_quality(plan(*size, window=100_000), 2, BATCH)
    assert abs(found.rank_correlation) < 0.1
    assert found.neighbour_distance == pytest.approx(1.0, abs=0.1)
    assert found.reads_per_batch > 0.8 * min(BATCH, size[0] * size[1])


def test_a_small_window_is_a_poorer_shuffle() -> None:
    wide, narrow = (shuffle_quality(plan(window=window), 0, BATCH) for window in (50_000, 1000))
    assert narrow.neighbour_distance < 0.6 * wide.neighbour_distance  # half of the neighbours are of one shard


def test_runs_are_cheaper_and_poorer() -> None:
    one, eight = (shuffle_quality(plan(window=50_000, block=block), 0, BATCH) for block in (1, 8))
    assert eight.reads_per_batch < one.reads_per_batch / 6
    assert eight.neighbour_distance == pytest.approx(one.neighbour_distance / 8, rel=0.2)
    assert abs(eight.rank_correlation) < 0.2


def test_of_tiny_data() -> None:
    assert shuffle_quality(plan(1, 1), 0, BATCH).reads_per_batch == 1


def test_it_costs_the_same_for_a_billion_samples() -> None:
    huge = ShufflePlan("an index", np.full(1_000_000, 1000), 0)
    assert shuffle_quality(huge, 3, BATCH).neighbour_distance > 0
