"""The nearest vectors: exactly, by one matrix product, and approximately above a million facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipelines.knowledge.errors import KnowledgeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT = 1_000_000
"""Up to so many facts the search is exact: 100,000 of 384 numbers take milliseconds."""


class VectorSearch(Protocol):
    """The ``top`` nearest of M vectors to N queries, all of length 1."""

    def nearest(
        self, queries_NF: NDArray[np.float32], top: int, without: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows (N, J) and cosines (N, J), the nearest first; J is ``top``, or the number of vectors if that is less.

        Args:
            without: rows that are left out.
        """


class ExactVectorSearch:
    """All cosines by one product, then the greatest."""

    def __init__(self, vectors_MF: NDArray[np.float32]) -> None:
        self._vectors_MF = vectors_MF

    def nearest(
        self, queries_NF: NDArray[np.float32], top: int, without: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        cosines_NM = queries_NF @ self._vectors_MF.T
        missing = 0 if without is None else len(without)
        if missing:
            cosines_NM[:, without] = -np.inf
        top = min(top, cosines_NM.shape[1] - missing)
        if top == 0:
            return np.zeros((len(queries_NF), 0), np.int64), np.zeros((len(queries_NF), 0), np.float32)
        some_NJ = np.argpartition(-cosines_NM, top - 1, axis=1)[:, :top]
        values_NJ = np.take_along_axis(cosines_NM, some_NJ, 1)
        # Of equal cosines the first row, so that results do not depend on the partition.
        order_NJ = np.lexsort((some_NJ, -values_NJ), axis=1)
        return np.take_along_axis(some_NJ, order_NJ, 1), np.take_along_axis(values_NJ, order_NJ, 1)


class ApproximateVectorSearch:
    """usearch's graph (HNSW, Malkov and Yashunin 2016) over one version's vectors; it is thrown away with the version.

    Raises:
        KnowledgeError: usearch is not installed.
    """

    def __init__(self, vectors_MF: NDArray[np.float32]) -> None:
        try:
            from usearch.index import Index
        except ImportError:
            raise KnowledgeError(
                f'{len(vectors_MF)} facts are searched by usearch; install it with pip install "raylm[knowledge]"'
            ) from None
        self._index = Index(ndim=vectors_MF.shape[1], metric="ip", dtype="f32")
        self._index.add(np.arange(len(vectors_MF)), vectors_MF)

    def nearest(
        self, queries_NF: NDArray[np.float32], top: int, without: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        rows_NJ, cosines_NJ = [], []
        missing = np.zeros(0, np.int64) if without is None else without
        shape = (len(queries_NF), min(top, len(self._index) - len(missing)))
        for query_F in queries_NF:
            matches = self._index.search(query_F, top + len(missing))
            keys = np.asarray(matches.keys, np.int64)
            left = ~np.isin(keys, missing)
            rows_NJ.append(keys[left][:top])
            cosines_NJ.append(1 - np.asarray(matches.distances, np.float32)[left][:top])
        return np.array(rows_NJ, np.int64).reshape(shape), np.array(cosines_NJ, np.float32).reshape(shape)


def build_vector_search(vectors_MF: NDArray[np.float32], exact: int = EXACT) -> VectorSearch:
    """The search for so many vectors."""
    return ExactVectorSearch(vectors_MF) if len(vectors_MF) <= exact else ApproximateVectorSearch(vectors_MF)
