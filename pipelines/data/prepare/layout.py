"""Assigns samples to shards of similar size, in the order of the source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assign_shard_numbers(sizes_N: NDArray[np.int64], samples: int, size: int) -> NDArray[np.int64]:
    """Assign each of N samples of a split the number of its shard, from 0 without gaps.

    There are as few shards as the limits allow, and all have the same number of bytes, up to one sample.

    Args:
        sizes_N: of each sample in a tar, in bytes.
        samples: of a shard.
        size: of a shard, in bytes.
    """
    if not len(sizes_N):
        return np.zeros(0, np.int64)
    total = int(sizes_N.sum())
    shards = max(-(-len(sizes_N) // samples), -(-total // size))
    # A sample goes to the shard in whose share of all bytes its middle lies; 2 * total avoids halves.
    middles_N = 2 * np.cumsum(sizes_N) - sizes_N
    shard_N = (middles_N / (2 * total) * shards).astype(np.int64)
    return np.unique(shard_N, return_inverse=True)[1].astype(np.int64)
