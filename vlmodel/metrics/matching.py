"""Metrics of image-text matching: does the text belong to the image?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from vlmodel.metrics.calibration import calibration_error


def matching_scores(
    probabilities: Sequence[float], matches: Sequence[bool], threshold: float = 0.5
) -> dict[str, float]:
    """Compute ``accuracy``, ``balanced_accuracy``, ``roc_auc`` and ``ece``, and the same metrics of a constant answer
    (``floor_...``).

    Pairs of one class only have no ``balanced_accuracy`` and no ``roc_auc``. ``floor_accuracy`` is that of the more
    frequent class of these very pairs; no constant answer does better.

    Args:
        probabilities: that each pair is a match.
        matches: whether it is.
        threshold: from this probability on a pair counts as predicted match.

    Raises:
        ValueError: a number that is not a probability.
    """
    calibration = calibration_error(probabilities, matches)
    truth_N, probability_N = np.asarray(matches, dtype=bool), np.asarray(probabilities, dtype=np.float64)
    share = truth_N.mean().item()
    predicted_N = probability_N >= threshold
    accuracy = float(accuracy_score(truth_N, predicted_N))
    if share in (0, 1):
        return {"accuracy": accuracy, **calibration, "floor_accuracy": 1.0}
    return {
        "accuracy": accuracy,
        "balanced_accuracy": float(balanced_accuracy_score(truth_N, predicted_N)),
        "roc_auc": float(roc_auc_score(truth_N, probability_N)),
        **calibration,
        "floor_accuracy": max(share, 1 - share),
        "floor_balanced_accuracy": 0.5,
        "floor_roc_auc": 0.5,
    }
