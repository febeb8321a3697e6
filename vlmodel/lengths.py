"""Texts of like length together, so that each is padded to the longest of its group and not of the whole batch.

numpy alone, and where the batch is made: how the texts are cut into groups decides shapes, which the host must know
without asking the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_SAVED_SHARE, MIN_SAVED_TOKENS = 0.05, 64
"""A group more must save this share of the batch's tokens and so many of them: it costs a pass through the encoder."""


def group_by_length(mask_UT: NDArray[np.bool_], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The texts from short to long, cut into at most ``most`` groups with as few tokens as can be, padding included.

    Where to cut is found exactly, by dynamic programming over the different lengths (quantiles would cut between equal
    texts as soon as many are of one length). Fewer groups are made where a further one is not worth its pass.

    Args:
        mask_UT: True where a token is real; real tokens stand side by side, with the padding at either end.

    Returns:
        ``order_U``, the texts in their new order, and ``groups_G3``: how many of these make each group, and between
        which columns its tokens stand.
    """
    length_U = mask_UT.sum(1)
    order_U = np.argsort(length_U, kind="stable").astype(np.int64, copy=False)
    groups: list[tuple[int, int, int]] = []
    first = 0
    for stop in _stops(length_U, most):
        columns = np.flatnonzero(mask_UT[order_U[first:stop]].any(0))
        # Texts without a token keep a column: a sequence has one at least.
        start, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
        groups.append((stop - first, start, end))
        first = stop
    return order_U, np.array(groups, np.int64).reshape(-1, 3)


def _stops(length_U: NDArray[np.int64], most: int) -> list[int]:
    """Where each group ends among the texts from short to long."""
    if not len(length_U):
        return []
    width_L, count_L = np.unique(length_U, return_counts=True)
    stop_L = np.cumsum(count_L)
    lengths = len(width_L)
    # Tokens of a group that begins with one length (row) and ends with another (column).
    tokens_LL = (stop_L - (stop_L - count_L)[:, None]) * np.maximum(width_L, 1).astype(np.float64)
    tokens_LL[np.tri(lengths, k=-1, dtype=np.bool_)] = np.inf
    # Of all groups up to a length, the last included; and for each number of groups with what length the last begins.
    fewest_L, begins, totals = tokens_LL[0], [], [tokens_LL[0, -1]]
    for _ in range(1, min(most, lengths)):
        sums_LL = np.append(np.inf, fewest_L[:-1])[:, None] + tokens_LL
        begins.append(sums_LL.argmin(0))
        fewest_L = sums_LL.min(0)
        totals.append(fewest_L[-1])
    price = max(MIN_SAVED_SHARE * totals[0], MIN_SAVED_TOKENS)
    more = int(np.argmin(np.array(totals) + price * np.arange(len(totals))))
    stops, last = [int(stop_L[-1])], lengths - 1
    for begin_L in reversed(begins[:more]):
        last = int(begin_L[last]) - 1
        stops.append(int(stop_L[last]))
    return stops[::-1]
