"""The nearest vectors: those that all cosines at once give, whatever is read at a time."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.vectors import search
from pipelines.vectors.search import (
    ApproximateVectorSearch,
    ExactVectorSearch,
    build_vector_search,
    load_graphs,
    save_graphs,
)


def unit_vectors(count: int, seed: int = 0, width: int = 32) -> NDArray[np.float32]:
    vectors_MF = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors_MF / np.linalg.norm(vectors_MF, axis=1, keepdims=True)


def by_brute_force(
    vectors_MF: NDArray[np.float32], queries_NF: NDArray[np.float32], top: int, without: Collection[int] = ()
) -> list[list[int]]:
    cosines_NM = queries_NF @ vectors_MF.T
    orders = (sorted(range(len(vectors_MF)), key=lambda row: (-cosines_M[row], row)) for cosines_M in cosines_NM)
    return [[row for row in order if row not in without][:top] for order in orders]


@pytest.mark.parametrize("at_once", [1, 7, 100, 1 << 15])
@pytest.mark.parametrize("top", [0, 1, 10, 1000])
def test_the_exact_search_is_brute_force(monkeypatch: pytest.MonkeyPatch, at_once: int, top: int) -> None:
    monkeypatch.setattr(search, "ROWS_AT_ONCE", at_once)
    # Values of few bits, so that products are exact and many are equal.
    rng = np.random.default_rng(0)
    vectors_MF = rng.integers(-1, 2, (150, 4)).astype(np.float32)
    queries_NF = rng.integers(-1, 2, (5, 4)).astype(np.float32)
    without = np.array([0, 3, 99, 149])
    for left_out in (None, without):
        rows_NJ, cosines_NJ = ExactVectorSearch(vectors_MF).nearest(queries_NF, top, left_out)
        expected = by_brute_force(vectors_MF, queries_NF, top, set() if left_out is None else {*left_out.tolist()})
        assert rows_NJ.tolist() == expected
        assert np.array_equal(cosines_NJ, np.take_along_axis(queries_NF @ vectors_MF.T, rows_NJ, 1))


def test_all_vectors_left_out_leave_nothing() -> None:
    vectors_MF = unit_vectors(3)
    rows_NJ, cosines_NJ = ExactVectorSearch(vectors_MF).nearest(vectors_MF, 2, np.arange(3))
    assert rows_NJ.shape == cosines_NJ.shape == (3, 0)
    assert ExactVectorSearch(vectors_MF[:0]).nearest(vectors_MF, 2)[0].shape == (3, 0)


def test_graphs_agree_with_the_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several graphs too, with cosines that are exact."""
    pytest.importorskip("usearch")
    monkeypatch.setattr(search, "GRAPH_ROWS", 700)
    vectors_MF = unit_vectors(2000)
    queries_NF, without = vectors_MF[:50], np.arange(0, 20)
    exact_NJ, exact_cosines_NJ = ExactVectorSearch(vectors_MF).nearest(queries_NF, 5, without)
    near_NJ, cosines_NJ = ApproximateVectorSearch(vectors_MF).nearest(queries_NF, 5, without)
    assert (near_NJ == exact_NJ).mean() >= 0.95
    assert not np.isin(near_NJ, without).any()
    assert np.allclose(cosines_NJ, np.einsum("njf,nf->nj", vectors_MF[near_NJ], queries_NF), atol=1e-6)
    assert np.abs(cosines_NJ[:, 0] - exact_cosines_NJ[:, 0]).max() < 0.2
    assert ApproximateVectorSearch(vectors_MF).nearest(queries_NF[:1], 3000)[0].shape == (1, 2000), "all that there are"


def test_graphs_are_mapped_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    monkeypatch.setattr(search, "GRAPH_ROWS", 200)
    vectors_MF = unit_vectors(500)
    save_graphs(vectors_MF, tmp_path / "graph")
    assert len(list(tmp_path.iterdir())) == 3
    mapped = ApproximateVectorSearch(vectors_MF, load_graphs(500, tmp_path / "graph"))
    rows_NJ, _ = mapped.nearest(vectors_MF[:50], 3)
    assert (rows_NJ[:, 0] == np.arange(50)).mean() >= 0.95


def test_more_vectors_than_are_searched_exactly_need_usearch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    assert isinstance(build_vector_search(unit_vectors(5), exact=5), ExactVectorSearch)
    with pytest.raises(DataError, match=r"raylm\[knowledge\]"):
        build_vector_search(unit_vectors(5), exact=4)
