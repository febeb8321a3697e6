"""Image-text matching: does the text belong to the image?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from pipelines.evaluate.metrics.calibration import calibration_error
from pipelines.evaluate.metrics.check import same_length


def matching_scores(
    probabilities: Sequence[float], matches: Sequence[bool], threshold: float = 0.5
) -> dict[str, float]:
    """``accuracy``, ``balanced_accuracy``, ``roc_auc`` and ``ece``, beside what a constant answer reaches.

    ``floor_accuracy`` is that of the answer that is right most often for these very pairs; no constant does better.

    Args:
        probabilities: that each pair is a match.
        matches: whether it is.
        threshold: a pair is called a match from this probability on.

    Raises:
        ValueError: empty, of different lengths, a number that is no probability, or pairs of one kind only.
    """
    same_length(probabilities=probabilities, matches=matches)
    calibration = calibration_error(probabilities, matches)
    truth_N, probability_N = np.asarray(matches, dtype=bool), np.asarray(probabilities, dtype=np.float64)
    share = truth_N.mean().item()
    if share in (0, 1):
        kind = "a match" if share else "no match"
        raise ValueError(f"every one of the {len(truth_N)} pairs is {kind}; figures of matching need both kinds")
    called_N = probability_N >= threshold
    return {
        "accuracy": float(accuracy_score(truth_N, called_N)),
        "balanced_accuracy": float(balanced_accuracy_score(truth_N, called_N)),
        "roc_auc": float(roc_auc_score(truth_N, probability_N)),
        **calibration,
        "floor_accuracy": max(share, 1 - share),
        "floor_balanced_accuracy": 0.5,
        "floor_roc_auc": 0.5,
    }
