"""What a figure means beside a baseline."""

from __future__ import annotations

import re

import pytest

from pipelines.evaluate.verdict import compare_with_baseline, describe_baseline_comparisons, least_favourable_relation
from tests.pipelines.evaluate.test_intervals import scores_of


def rows(both: int, gained: int, lost: int, neither: int) -> tuple[list[float], list[float]]:
    """A model's answers and a baseline's: right in both, in the model's alone, in the baseline's alone, in none."""
    model = [1.0] * (both + gained) + [0.0] * (lost + neither)
    return model, [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither


@pytest.mark.parametrize(
    ("counts", "relation", "says"),
    [
        ((40, 60, 10, 90), "better", r"better than chance \(0\.2500\) by 0\.2500 \(95 % interval 0\.\d+ to 0\.\d+\)"),
        ((40, 10, 60, 90), "worse", r"worse than chance \(0\.5000\) by 0\.2500 \(95 % interval 0\.\d+ to 0\.\d+\)"),
        ((40, 32, 30, 98), "unclear", r"not distinguishable from chance \(0\.3500; difference -0\.\d+ to \+0\.\d+\)"),
        ((40, 0, 0, 10), "unclear", r"not distinguishable from chance \(0\.8000; difference \+0\.0000 to \+0\.0000\)"),
        # Five rows that differ, all for the better: p = 2/2^5, however narrow the bootstrap's interval is.
        ((0, 5, 0, 0), "unclear", r"not distinguishable from chance"),
        ((0, 6, 0, 0), "better", r"better than chance \(0\.0000\) by 1\.0000"),
    ],
)
def test_a_model_is_better_or_worse_with_certainty_or_it_is_unclear(
    counts: tuple[int, int, int, int], relation: str, says: str
) -> None:
    model, baseline = rows(*counts)
    found = compare_with_baseline("chance", "chance", scores_of(model), scores_of(baseline))
    assert found.relation == relation
    assert re.search(says, describe_baseline_comparisons([found]))


def test_the_least_favourable_of_several_counts_and_comes_first() -> None:
    by = {
        description: compare_with_baseline(description, description, *(scores_of(values) for values in rows(*counts)))
        for description, counts in (("above", (0, 60, 5, 35)), ("even", (20, 11, 10, 59)), ("below", (0, 5, 60, 35)))
    }
    assert least_favourable_relation(list(by.values())) == "worse"
    assert least_favourable_relation([by["above"], by["even"]]) == "unclear"
    assert least_favourable_relation([by["above"]]) == "better"
    assert least_favourable_relation([]) == "unclear"
    line = describe_baseline_comparisons(list(by.values()))
    assert (
        line.index("worse than below") < line.index("not distinguishable from even") < line.index("better than above")
    )
