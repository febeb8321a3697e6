"""Ranks of tails, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vlmodel.metrics.triples import filtered_ranks, link_metrics

TAILS = np.array([[1, 0], [0.9, 0], [0.5, 0], [-1, 0]], np.float32)
QUERY = np.array([[1, 0], [1, 0], [1, 0]], np.float32)


def test_other_right_tails_are_no_candidates() -> None:
    target = np.array([0, 2, 2])
    assert filtered_ranks(QUERY, TAILS, target, [{0}, {2}, {0, 2}]).tolist() == [1, 3, 2]


def test_ties_count_against_the_model() -> None:
    equal = np.ones((5, 2), np.float32)
    assert filtered_ranks(equal[:1], equal, np.array([3]), [{3}]).tolist() == [5]


def test_a_broken_model_is_said() -> None:
    with pytest.raises(ValueError, match="not finite"):
        filtered_ranks(QUERY * np.nan, TAILS, np.array([0, 0, 0]), [{0}] * 3)


def test_reciprocal_ranks_and_hits() -> None:
    assert link_metrics(np.array([1, 2, 20])) == pytest.approx(
        {"mrr": 1.55 / 3, "hits_at_1": 1 / 3, "hits_at_10": 2 / 3}
    )
