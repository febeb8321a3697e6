"""The calibration error by hand."""

from __future__ import annotations

import pytest

from vlmodel.metrics.calibration import calibration_error


def test_the_error_is_the_gap_within_each_bin() -> None:
    # Below a half: 0.2 on average, and 1 of 2 happened. Above: 0.9 on average, and 2 of 2.
    found = calibration_error([0.1, 0.3, 0.8, 1.0], [True, False, True, True], bins=2)
    assert found == {"ece": pytest.approx(0.5 * 0.3 + 0.5 * 0.1)}


def test_right_and_wrong_certainty() -> None:
    assert calibration_error([1.0, 1.0, 0.0], [True, True, False])["ece"] == pytest.approx(0)
    assert calibration_error([1.0, 1.0, 0.0], [False, False, True])["ece"] == pytest.approx(1)


def test_a_rounding_above_one_is_a_probability() -> None:
    assert calibration_error([1.0000001, 1.0], [True, True])["ece"] == pytest.approx(0)


@pytest.mark.parametrize("number", [1.5, -0.1, float("nan"), float("inf")])
def test_what_is_no_probability_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match=f"holds {number:g}; give numbers between 0 and 1"):
        calibration_error([0.5, number], [True, False])
