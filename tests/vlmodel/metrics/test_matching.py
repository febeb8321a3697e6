"""Figures of matching by hand."""

from __future__ import annotations

import pytest

from vlmodel.metrics.matching import matching_scores


def test_metrics_by_hand() -> None:
    # Of the 3 x 1 pairs of a match with a mismatch, two are in the right order and one is tied.
    scores = matching_scores([0.9, 0.5, 0.75, 0.5], [True, True, True, False])
    assert scores == {
        "accuracy": pytest.approx(3 / 4),
        "balanced_accuracy": pytest.approx((1 + 0) / 2),
        "roc_auc": pytest.approx(2.5 / 3),
        "ece": pytest.approx((0.1 + 0.25 + 0) / 4),
        "floor_accuracy": pytest.approx(3 / 4),
        "floor_balanced_accuracy": 0.5,
        "floor_roc_auc": 0.5,
    }


def test_the_baseline_is_the_more_frequent_answer() -> None:
    assert matching_scores([0.1] * 5, [False, False, False, False, True])["floor_accuracy"] == pytest.approx(0.8)


def test_the_threshold_moves_the_calls_alone() -> None:
    given = [0.2, 0.4, 0.6, 0.8], [False, True, True, True]
    low, high = matching_scores(*given, threshold=0.3), matching_scores(*given, threshold=0.7)
    assert (low["accuracy"], high["accuracy"]) == (1.0, 0.5)
    assert low["roc_auc"] == high["roc_auc"] == 1


@pytest.mark.parametrize("matches", [[True, True], [False, False]])
def test_pairs_of_one_kind_have_no_balance(matches: list[bool]) -> None:
    scores = matching_scores([0.1, 0.9], matches)
    assert scores == {"accuracy": 0.5, "ece": pytest.approx((0.9 + 0.1) / 2), "floor_accuracy": 1.0}


def test_input_that_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="probabilities holds 3"):
        matching_scores([3.0, 0.1], [True, False])
