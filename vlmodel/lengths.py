"""Groups texts of similar length, so that each text is padded to the longest of its group instead of the longest of the
batch.

It runs where the batch is made: the groups decide shapes, which the host must know without asking the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_SAVED_SHARE, MIN_SAVED_TOKENS = 0.05, 64
"""One more group costs one more pass, and must save this share of the batch's tokens and this many of them."""


def group_texts_by_length(mask_UT: NDArray[np.bool_], max_groups: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut the texts, sorted by length, into at most ``max_groups`` groups with the fewest tokens in total, padding
    included.

    Dynamic programming over the distinct lengths finds the exact optimum; quantiles would separate texts of equal
    length. There are fewer groups if one more does not save enough.

    Args:
        mask_UT: True where a token is real; the real tokens of a text are contiguous.

    Returns:
        ``order_U``, the texts in their new order, and ``groups_G3``: for each group how many of these it contains, and
        the first and end column of its tokens.
    """
    length_U = mask_UT.sum(1)
    order_U = np.argsort(length_U, kind="stable").astype(np.int64, copy=False)
    groups: list[tuple[int, int, int]] = []
    first = 0
    for stop in _optimal_group_ends(length_U, max_groups):
        columns = np.flatnonzero(mask_UT[order_U[first:stop]].any(0))
        # A sequence has at least one column, even if its texts have no token.
        start, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
        groups.append((stop - first, start, end))
        first = stop
    return order_U, np.array(groups, np.int64).reshape(-1, 3)


def _optimal_group_ends(length_U: NDArray[np.int64], max_groups: int) -> list[int]:
    """Find where each group of sorted texts ends so that padding is least."""
    if not len(length_U):
        return []
    width_L, count_L = np.unique(length_U, return_counts=True)
    stop_L = np.cumsum(count_L)
    lengths = len(width_L)
    # Tokens of a group that begins with one length (row) and ends with another (column).
    tokens_LL = (stop_L - (stop_L - count_L)[:, None]) * np.maximum(width_L, 1).astype(np.float64)
    tokens_LL[np.tri(lengths, k=-1, dtype=np.bool_)] = np.inf
    # Fewest tokens of the texts up to each length; for each number of groups, with which length the last one begins.
    fewest_L, begins, totals = tokens_LL[0], [], [tokens_LL[0, -1]]
    for _ in range(1, min(max_groups, lengths)):
        sums_LL = np.append(np.inf, fewest_L[:-1])[:, None] + tokens_LL
        begins.append(sums_LL.argmin(0))
        fewest_L = sums_LL.min(0)
        totals.append(fewest_L[-1])
    price = max(MIN_SAVED_SHARE * totals[0], MIN_SAVED_TOKENS)
    cuts = int(np.argmin(np.array(totals) + price * np.arange(len(totals))))
    stops, last = [int(stop_L[-1])], lengths - 1
    for begin_L in reversed(begins[:cuts]):
        last = int(begin_L[last]) - 1
        stops.append(int(stop_L[last]))
    return stops[::-1]
