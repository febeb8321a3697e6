"""Finds the nearest vectors: exactly, by matrix products, or approximately if there are more than a million.

Vectors may lie in memory or be mapped from a file: they are read a part at a time, so that a search holds no more than
``ROWS_AT_ONCE`` of them, and their cosines, beside what it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipelines.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT = 1_000_000
"""Up to so many vectors the search is exact: 100,000 of 384 numbers take milliseconds."""
ROWS_AT_ONCE = 1 << 15
"""Vectors of one matrix product."""
GRAPH_ROWS = 1 << 18
"""Vectors of one graph. usearch holds a graph in memory while it is built, and maps it from its file later."""


class VectorSearch(Protocol):
    """The interface of a search for the ``top`` nearest of M vectors to N queries, all of length 1."""

    def nearest(
        self, queries_NF: NDArray[np.float32], top: int, without: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the rows (N, J) and the cosines (N, J) of the nearest vectors, the nearest first; J is ``top``, or the
        number of vectors if that is less.

        Args:
            without: rows that are left out, ascending.
        """


class ExactVectorSearch:
    """A vector search that computes all cosines and keeps the greatest. Of equal cosines the first row counts."""

    def __init__(self, vectors_MF: NDArray[np.float32]) -> None:
        self._vectors_MF = vectors_MF

    def nearest(
        self, queries_NF: NDArray[np.float32], top: int, without: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        missing = np.zeros(0, np.int64) if without is None else without
        count = len(self._vectors_MF)
        top = min(top, count - len(missing))
        best = [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries_NF]
        for start in range(0, count if top else 0, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, count)
            cosines_NC = queries_NF @ self._vectors_MF[start:stop].T
            first, last = np.searchsorted(missing, (start, stop))
            cosines_NC[:, missing[first:last] - start] = -np.inf
            best = [_keep_greatest(*pair, start, top) for pair in zip(best, cosines_NC, strict=True)]
        return _stack_results(best, top)


def _keep_greatest(
    best: tuple[NDArray[np.int64], NDArray[np.float32]], cosines_C: NDArray[np.float32], start: int, top: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Merge the ``top`` greatest cosines so far with the next cosines, whose first row is ``start``."""
    rows, values = best
    # One that equals the last of them comes after it.
    found = np.flatnonzero(cosines_C > (values[-1] if len(values) == top else -np.inf))
    if not len(found):
        return best
    cosines = cosines_C[found]
    if len(found) > top:
        is_among = cosines >= np.partition(cosines, len(found) - top)[len(found) - top]
        found, cosines = found[is_among], cosines[is_among]
    return _sort_by_cosine(np.concatenate([rows, found + start]), np.concatenate([values, cosines]), top)


def _sort_by_cosine(
    rows: NDArray[np.int64], cosines: NDArray[np.float32], top: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    order = np.lexsort((rows, -cosines))[:top]
    return rows[order], cosines[order]


def _stack_results(
    best: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]], top: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    shape = (len(best), top)
    rows_NJ = np.array([rows for rows, _ in best], np.int64).reshape(shape)
    return rows_NJ, np.array([cosines for _, cosines in best], np.float32).reshape(shape)


class ApproximateVectorSearch:
    """Finds candidates by graphs (HNSW, Malkov and Yashunin 2016, arXiv:1603.09320), and computes only their cosines.

    Args:
        graphs: of ``load_graphs``, over these vectors; None builds them in memory.

    Raises:
        DataError: usearch is not installed.
    """

    def __init__(self, vectors_MF: NDArray[np.float32], graphs: Sequence[Any] | None = None) -> None:
        self._vectors_MF = vectors_MF
        if graphs is None:
            graphs = [_build_graph(vectors_MF, start) for start in range(0, len(vectors_MF), GRAPH_ROWS)]
        self._graphs = graphs

    def nearest(
        self, queries_NF: NDArray[np.float32], top: int, without: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        missing = np.zeros(0, np.int64) if without is None else without
        top = min(top, len(self._vectors_MF) - len(missing))
        if not top:
            return _stack_results([(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries_NF), 0)
        return _stack_results([self._nearest_to_one(query_F, top, missing) for query_F in queries_NF], top)

    def _nearest_to_one(
        self, query_F: NDArray[np.float32], top: int, missing: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        candidates = []
        for number, graph in enumerate(self._graphs):
            start = number * GRAPH_ROWS
            first, last = np.searchsorted(missing, (start, start + len(graph)))
            # More than are wanted: a graph of halves confuses those that are nearly as far.
            found = graph.search(query_F, min(len(graph), 2 * top + int(last - first)))
            rows = np.asarray(found.keys).astype(np.int64) + start
            candidates.append(rows[~np.isin(rows, missing[first:last])])
        chosen = np.sort(np.concatenate(candidates))
        if len(chosen) < top:  # not every vector of a graph need be reached
            rows_1J, cosines_1J = ExactVectorSearch(self._vectors_MF).nearest(query_F[None], top, missing)
            return rows_1J[0], cosines_1J[0]
        return _sort_by_cosine(chosen, self._vectors_MF[chosen] @ query_F, top)


def save_graphs(vectors_MF: NDArray[np.float32], file: Path) -> None:
    """Build the graphs of vectors one after the other, and write each to a file, ``FILE.NUMBER``.

    Raises:
        DataError: usearch is not installed.
    """
    for number, start in enumerate(range(0, len(vectors_MF), GRAPH_ROWS)):
        _build_graph(vectors_MF, start).save(f"{file}.{number}")


def load_graphs(count: int, file: Path) -> list[Any]:
    """Map the graphs of ``count`` vectors from the files that ``save_graphs`` wrote.

    Raises:
        DataError: usearch is not installed.
    """
    restore = _import_usearch(count).restore
    return [restore(f"{file}.{number}", view=True) for number in range(-(-count // GRAPH_ROWS))]


def build_vector_search(vectors_MF: NDArray[np.float32], exact: int = EXACT) -> VectorSearch:
    """Create the exact or the approximate search, by the number of vectors."""
    return ExactVectorSearch(vectors_MF) if len(vectors_MF) <= exact else ApproximateVectorSearch(vectors_MF)


def _build_graph(vectors_MF: NDArray[np.float32], start: int) -> Any:
    part_CF = vectors_MF[start : start + GRAPH_ROWS]
    # Halves: the cosines that are returned are computed from the vectors themselves.
    graph = _import_usearch(len(vectors_MF))(ndim=part_CF.shape[1], metric="ip", dtype="f16")
    graph.add(np.arange(len(part_CF)), np.ascontiguousarray(part_CF))
    return graph


def _import_usearch(count: int) -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise DataError(
            f'{count} vectors are searched by usearch; install it with pip install "raylm[knowledge]"'
        ) from None
    return Index
