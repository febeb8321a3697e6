"""Computes confidence intervals of a metric, and of a difference of two metrics on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlmodel.metrics.scores import ExampleScores

if TYPE_CHECKING:
    pass


CONFIDENCE = 0.95
_RESAMPLES = 1000
_AT_ONCE = 1 << 20
"""Images drawn at a time, over all resamples."""


def confidence_interval(scores: ExampleScores, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute the confidence interval of a metric: Wilson's (1927) for a share of right answers, the bootstrap's for
    any other metric.
    """
    from scipy import stats

    if scores.binary and len(np.unique(scores.group_N)) == 1:
        right = int(scores.score_N.sum())
        low, high = stats.binomtest(right, len(scores)).proportion_ci(confidence, method="wilson")
        return float(low), float(high)
    zero = replace(scores, score_N=np.zeros_like(scores.score_N))
    return difference_interval(scores, zero, confidence)


def difference_interval(
    one: ExampleScores, other: ExampleScores, confidence: float = CONFIDENCE, resamples: int = _RESAMPLES
) -> tuple[float, float]:
    """Compute the confidence interval of the difference of two metrics on the same rows: the paired bootstrap
    (percentiles) over images, whose rows are not independent of each other. With a single image the bounds are
    infinite.
    """
    from scipy import stats

    image_N = np.unique(one.image_N, return_inverse=True)[1]
    group_N = np.unique(one.group_N, return_inverse=True)[1]
    images, groups = int(image_N.max()) + 1, int(group_N.max()) + 1
    if images == 1:
        return -np.inf, np.inf
    cell_N = image_N * groups + group_N
    gain_BG = (
        np.bincount(cell_N, one.score_N - other.score_N, images * groups).reshape(images, groups).astype(np.float64)
    )
    count_BG = np.bincount(cell_N, minlength=images * groups).reshape(images, groups)
    bootstrap = stats.bootstrap(
        (np.arange(images),),
        _make_mean_gain_statistic(gain_BG, count_BG),
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // images),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = bootstrap.confidence_interval
    return float(low), float(high)


def _make_mean_gain_statistic(
    gain_BG: NDArray[np.float64], count_BG: NDArray[np.int64]
) -> Callable[..., NDArray[np.float64]]:
    def compute_mean_gain(image_SB: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        drawn_SB = image_SB.astype(np.int64)
        gain_SG, count_SG = gain_BG[drawn_SB].sum(axis=-2), count_BG[drawn_SB].sum(axis=-2)
        # A resample may have no row of a group; that group then does not count.
        gains: NDArray[np.float64] = (gain_SG / np.maximum(count_SG, 1)).sum(axis=-1) / (count_SG > 0).sum(axis=-1)
        return gains

    return compute_mean_gain
