"""Compares a model's metric with the baselines, and summarizes the result in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.evaluate.intervals import CONFIDENCE, difference_interval
from vlmodel.metrics.scores import ExampleScores

if TYPE_CHECKING:
    pass


Relation = Literal["better", "unclear", "worse"]
"""Of a model to a baseline: significantly better or worse, or neither."""


@dataclass(frozen=True)
class BaselineComparison:
    """The comparison of a model with one baseline on the same rows.

    Attributes:
        name: of the baseline in the report.
        description: of the baseline.
        model, baseline: the metric of each.
        low, high: 95 % interval of the difference.
        rows: number of rows.
        looks: the baseline looks at the input.
    """

    name: str
    description: str
    model: float
    baseline: float
    low: float
    high: float
    relation: Relation
    rows: int
    looks: bool = False


def compare_with_baseline(
    name: str, description: str, model: ExampleScores, baseline: ExampleScores, looks: bool = False
) -> BaselineComparison:
    """Compare a model with a baseline by the paired bootstrap over images and, for right and wrong answers, also by
    McNemar's exact test, as the bootstrap overestimates a handful of differing rows.
    """
    from scipy import stats

    low, high = difference_interval(model, baseline)
    relation: Relation = "better" if low > 0 else "worse" if high < 0 else "unclear"
    if model.binary and relation != "unclear":
        gained = int((model.score_N > baseline.score_N).sum())
        lost = int((model.score_N < baseline.score_N).sum())
        if stats.binomtest(gained, gained + lost).pvalue > 1 - CONFIDENCE:
            relation = "unclear"
    return BaselineComparison(
        name, description, model.metric_value, baseline.metric_value, low, high, relation, len(model), looks
    )


def least_favourable_relation(comparisons: Sequence[BaselineComparison]) -> Relation:
    """Return the least favourable of a model's relations to its baselines."""
    relations = {comparison.relation for comparison in comparisons}
    return "worse" if "worse" in relations else "unclear" if "unclear" in relations or not relations else "better"


def describe_baseline_comparisons(comparisons: Sequence[BaselineComparison]) -> str:
    """Describe the comparisons with the baselines in one line, the least favourable first."""
    templates: Mapping[Relation, str] = {
        "worse": "worse than {description} ({baseline:.4f}) by {less:.4f} (95 % interval {least:.4f} to {most:.4f})",
        "unclear": "not distinguishable from {description} ({baseline:.4f}; difference {low:+.4f} to {high:+.4f})",
        "better": "better than {description} ({baseline:.4f}) by {more:.4f} (95 % interval {low:.4f} to {high:.4f})",
    }
    parts = []
    for relation, template in templates.items():
        for one in comparisons:
            if one.relation == relation:
                more = one.model - one.baseline
                parts.append(template.format(**vars(one), more=more, less=-more, least=-one.high, most=-one.low))
    return "; ".join(parts)
