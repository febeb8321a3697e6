"""Measures calibration: how far predicted probabilities are from observed frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchmetrics.functional.classification import binary_calibration_error


def calibration_error(probabilities: Sequence[float], happened: Sequence[bool], bins: int = 15) -> dict[str, float]:
    """Compute ``ece``, the expected calibration error (Guo et al. 2017, arXiv 1706.04599).

    Args:
        probabilities: of the best answer, or of a match.
        happened: whether that answer was right, or the pair a match.
        bins: of equal width; within each the mean probability is compared with the share that happened.

    Raises:
        ValueError: a number that is not a probability.
    """
    probability_N = torch.as_tensor(probabilities, dtype=torch.float64)
    # torchmetrics treats numbers outside [0, 1] as logits; a softmax in single precision may exceed 1 by rounding.
    wrong_N = ~((probability_N >= 0) & (probability_N <= 1 + 1e-6))
    if wrong_N.any():
        raise ValueError(f"probabilities holds {probability_N[wrong_N][0]:g}; give numbers between 0 and 1, not logits")
    happened_N = torch.as_tensor(happened, dtype=torch.int64)
    return {"ece": binary_calibration_error(probability_N.clamp(max=1), happened_N, n_bins=bins).item()}
