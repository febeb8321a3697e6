"""Finds samples whose image repeats that of another sample.

Only training samples are dropped. They are compared with val and test too, so that no evaluated image is trained on.
Val and test are kept whole, so that metrics stay comparable.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.data.prepare.hashing import NearHashIndex

_RANKS = {"test": 0, "val": 1, "train": 2}


def find_exact_duplicates(splits: NDArray[np.str_], images_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find for each of N samples the first one with the same image; -1 for a sample that is kept.

    First is test before val before train, then the order of the samples.

    Args:
        splits: of the samples.
        images_N: equal for equal images.
    """
    order = _split_precedence(splits)
    _, first_index, group = np.unique(images_N[order], return_index=True, return_inverse=True)
    first_N = np.empty(len(order), np.int64)
    first_N[order] = order[first_index[group]]
    first_N[(splits != "train") | (first_N == np.arange(len(order)))] = -1
    return first_N


def find_near_duplicates(
    splits: NDArray[np.str_], hashes_N: NDArray[np.uint64], distance: int, candidates: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Find for each of N samples a kept one whose hash differs in at most ``distance`` bits; -1 if there is none.

    Samples are processed in the order of ``find_exact_duplicates``, and each is compared with the kept ones only.

    Args:
        candidates: samples that were not dropped before.
    """
    kept, sample_of = NearHashIndex(distance), list[int]()
    original_N = np.full(len(splits), -1, np.int64)
    for sample in _split_precedence(splits).tolist():
        if not candidates[sample]:
            continue
        similar = kept.find_near(int(hashes_N[sample]))
        if similar is not None and splits[sample] == "train":
            original_N[sample] = sample_of[similar]
            continue
        kept.add(int(hashes_N[sample]))
        sample_of.append(sample)
    return original_N


def _split_precedence(splits: NDArray[np.str_]) -> NDArray[np.int64]:
    ranks = np.select([splits == split for split in _RANKS], list(_RANKS.values()))
    return np.argsort(ranks, kind="stable")
