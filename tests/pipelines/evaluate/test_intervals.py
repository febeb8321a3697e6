"""Intervals against published values, and where nothing can be said."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pipelines.evaluate.intervals import confidence_interval, difference_interval
from vlmodel.metrics.scores import ExampleScores


def scores_of(values: list[float], images: list[int] | None = None, *, binary: bool = True) -> ExampleScores:
    rows = np.arange(len(values))
    image_N = np.array(images) if images is not None else rows
    return ExampleScores(np.array(values, float), np.zeros(len(values), np.int64), image_N, rows, binary)


def test_a_share_of_right_answers_has_wilsons_interval() -> None:
    """(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), with z = 1.959964."""
    z, n, p = 1.959963984540054, 10, 0.8
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n))
    assert confidence_interval(scores_of([1] * 8 + [0] * 2)) == pytest.approx(expected)
    low, high = confidence_interval(scores_of([1] * 5))
    assert low < 0.6
    assert high == pytest.approx(1)


def test_other_metrics_have_the_bootstraps_interval() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(2, 1, 400)
    low, high = confidence_interval(scores_of(values.tolist(), binary=False))
    error = values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)


def test_rows_of_one_image_are_one_draw() -> None:
    """Ten rows of each of four images say no more than four."""
    right = [1] * 30 + [0] * 10
    alone = difference_interval(scores_of(right), scores_of([0] * 40))
    together = difference_interval(scores_of(right, [n // 10 for n in range(40)]), scores_of([0] * 40))
    assert together[0] < alone[0]
    assert together[1] == 1 > alone[1]


def test_equal_answers_and_a_single_image() -> None:
    one = scores_of([1, 0, 1, 1])
    assert difference_interval(one, one) == (0, 0)
    lone = replace(one, image_N=np.zeros(4, np.int64))
    assert difference_interval(lone, replace(lone, score_N=np.zeros(4))) == (-np.inf, np.inf)
