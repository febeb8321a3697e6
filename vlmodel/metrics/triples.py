"""Link prediction: ranks the right tail of each fact among all tails, leaving out other tails that are right, too."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

HITS = (1, 10)
_BLOCK = 2**24
"""Similarities in memory at a time: 64 MiB."""


def filtered_ranks(
    query_ND: NDArray[np.float32],
    tail_TD: NDArray[np.float32],
    target_N: NDArray[np.int64],
    known: Sequence[Collection[int]],
) -> NDArray[np.int64]:
    """Compute the rank of each query's tail, from 1 ("filtered" ranks, Bordes et al. 2013, section 4.1).

    Similarity is the dot product. Ties count against the model: what is as similar as the right one is ranked before
    it, so equal vectors for all score nothing.

    Args:
        target_N: the row of the right tail.
        known: of each query the rows of all tails that are right; those but the target are no candidates.

    Raises:
        ValueError: numbers that are not finite.
    """
    if not (np.isfinite(query_ND).all() and np.isfinite(tail_TD).all()):
        # Every comparison with NaN is false, which would give a broken model the best ranks.
        raise ValueError("vectors hold numbers that are not finite; the model that made them is broken")
    ranks_N, rows = np.zeros(len(query_ND), np.int64), max(1, _BLOCK // max(1, len(tail_TD)))
    for start in range(0, len(query_ND), rows):
        block = slice(start, start + rows)
        similarity_nT = query_ND[block] @ tail_TD.T
        right_n1 = np.take_along_axis(similarity_nT, target_N[block, None], 1)
        before_nT = similarity_nT >= right_n1
        for n, of_query in enumerate(known[block]):
            before_nT[n, list(of_query)] = False
        ranks_N[block] = 1 + before_nT.sum(1)
    return ranks_N


def link_metrics(rank_N: NDArray[np.int64]) -> dict[str, float]:
    """Compute the mean reciprocal rank, and the shares of ranks up to 1 and up to 10."""
    hits = {f"hits_at_{k}": float((rank_N <= k).mean()) for k in HITS}
    return {"mrr": float((1 / rank_N).mean())} | hits
