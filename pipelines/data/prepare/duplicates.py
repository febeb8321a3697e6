"""Which samples repeat the image of another one.

Only training samples are dropped. They are compared with val and test too, so that nothing is trained on that is
measured; val and test stay whole, as figures are compared on them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.data.prepare.hashing import NearHashes

_RANKS = {"test": 0, "val": 1, "train": 2}


def exact_duplicates(splits: NDArray[np.str_], images_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of N samples the first that has the same image; -1 for a sample that stays.

    First is test before val before train, then the order of the samples.

    Args:
        splits: of the samples.
        images_N: equal for equal images.
    """
    order = _precedence(splits)
    _, place, group = np.unique(images_N[order], return_index=True, return_inverse=True)
    first_N = np.empty(len(order), np.int64)
    first_N[order] = order[place[group]]
    first_N[(splits != "train") | (first_N == np.arange(len(order)))] = -1
    return first_N


def near_duplicates(
    splits: NDArray[np.str_], hashes_N: NDArray[np.uint64], distance: int, candidates: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For each of N samples one that stays and whose hash differs in at most ``distance`` bits; -1 where none does.

    Samples are taken in the order of ``exact_duplicates``. So of a chain of pictures, each like the next, those stay
    that are like none that stays.

    Args:
        taking_part: samples that were not dropped before.
    """
    staying, of_number = NearHashes(distance), list[int]()
    like_N = np.full(len(splits), -1, np.int64)
    for sample in _precedence(splits).tolist():
        if not candidates[sample]:
            continue
        found = staying.first(int(hashes_N[sample]))
        if found is not None and splits[sample] == "train":
            like_N[sample] = of_number[found]
            continue
        staying.add(int(hashes_N[sample]))
        of_number.append(sample)
    return like_N


def _precedence(splits: NDArray[np.str_]) -> NDArray[np.int64]:
    ranks = np.select([splits == split for split in _RANKS], list(_RANKS.values()))
    return np.argsort(ranks, kind="stable")
