"""Checks whether the candidate is better than the champion on the same rows by more than chance, and worse on no slice.

Two tests, as each has a weakness. The paired bootstrap resamples whole images, whose rows are not independent of each
other, and works for any metric, but overestimates a handful of differing rows. McNemar's exact test (1947) counts just
those rows, and works only for right and wrong answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.evaluate.intervals import difference_interval
from pipelines.registry.config import QUESTION_TYPE, GateConfig
from pipelines.registry.gate.check import GateCheck, MetricDifference
from vlmodel.metrics.scores import ExampleScores

if TYPE_CHECKING:
    pass


RESAMPLES = 2000
"""Of each bootstrap."""
LEAST_ROWS = 50
"""Slices of fewer rows, and fewer rows of new data, are not compared."""
_ROW_COLUMNS = ("key", "split", "text", "target", "references", "id")


def have_same_rows(candidate: pa.Table, champion: pa.Table) -> bool:
    """Whether two tables of answers are about the same rows in the same order."""
    return candidate.select(_ROW_COLUMNS).equals(champion.select(_ROW_COLUMNS))


def metric_difference(
    name: str, candidate: ExampleScores, champion: ExampleScores, config: GateConfig
) -> MetricDifference:
    """Compute the candidate's metric minus the champion's on the same rows, with bounds of the paired bootstrap
    (percentiles) over images. With a single image the bounds are infinite.
    """
    low, high = difference_interval(candidate, champion, 1 - 2 * config.alpha, RESAMPLES)
    return MetricDifference(name, len(candidate), candidate.metric_value, champion.metric_value, low, high)


def check_candidate_is_better(holdout: MetricDifference, metric: str, config: GateConfig) -> GateCheck:
    """Check that the lower bound of the candidate's gain is above the margin."""
    return GateCheck(
        name="better on the hold-out",
        passed=bool(holdout.low > config.margin),
        measured=(
            f"{metric} {holdout.candidate:.4f} against {holdout.champion:.4f}, {holdout.value:+.4f}, above "
            f"{holdout.low:+.4f} with {1 - config.alpha:.0%} certainty"
        ),
        required=f"above {config.margin:+.4f} with {1 - config.alpha:.0%} certainty",
        explanation=f"paired bootstrap over images, {RESAMPLES} resamples, {holdout.rows} rows",
        compares=True,
    )


def check_mcnemar(candidate: ExampleScores, champion: ExampleScores, config: GateConfig) -> GateCheck:
    """Check by McNemar's exact test, one-sided, whether the candidate has more of the rows that only one model answers
    right.
    """
    from scipy import stats

    name, required = "not by chance", f"p at most {config.alpha:g}"
    if not candidate.binary:
        return GateCheck(
            name, None, "", required, "McNemar's test is of right and wrong answers; see the bootstrap", True
        )
    gained = int(((candidate.score_N == 1) & (champion.score_N == 0)).sum())
    lost = int(((candidate.score_N == 0) & (champion.score_N == 1)).sum())
    p = float(stats.binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue) if gained + lost else 1.0
    return GateCheck(
        name=name,
        passed=p <= config.alpha,
        measured=f"p = {p:.3g}: only the candidate is right {gained} times, only the champion {lost} times",
        required=required,
        explanation="McNemar's exact test, one-sided",
        compares=True,
    )


def row_masks_by_slice(answers: pa.Table, columns: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return for each slice, named "column=value", a mask of its rows; the most frequent slice first. Rows without a
    value are in none.
    """
    masks: dict[str, NDArray[np.bool_]] = {}
    for column in columns:
        if column == QUESTION_TYPE:
            values = pa.array([" ".join(text.lower().split()[:2]) or None for text in answers["text"].to_pylist()])
        else:
            values = answers[column]
        counts = [(item["counts"], item["values"]) for item in pc.value_counts(values.cast(pa.string())).to_pylist()]
        for _, value in sorted(counts, key=lambda item: (-item[0], item[1] or "")):
            if value is not None:
                mask = pc.fill_null(pc.equal(values, value), False)
                masks[f"{column}={value}"] = mask.to_numpy(zero_copy_only=False)
    return masks


def metric_differences_by_slice(
    candidate: ExampleScores, champion: ExampleScores, masks: Mapping[str, NDArray[np.bool_]], config: GateConfig
) -> list[MetricDifference]:
    """Compute the candidate's metric minus the champion's on each slice that has enough rows."""
    differences = []
    for name, mask in masks.items():
        candidate_slice, champion_slice = candidate.select_rows(mask), champion.select_rows(mask)
        if len(candidate_slice) >= LEAST_ROWS:
            differences.append(
                with_slice_tolerance(metric_difference(name, candidate_slice, champion_slice, config), config)
            )
    return differences


def with_slice_tolerance(measured: MetricDifference, config: GateConfig) -> MetricDifference:
    """Add to a difference the tolerance that is configured for its slice."""
    return with_tolerance(measured, config.tolerances.get(measured.name, config.tolerance))


def with_tolerance(measured: MetricDifference, tolerance: float) -> MetricDifference:
    """Add a tolerance to a difference, and decide whether it is worse: below the tolerance and significantly below
    zero.
    """
    worse = bool(measured.value < -tolerance and measured.high < 0)
    return replace(measured, tolerance=tolerance, worse=worse)


def check_no_slice_is_worse(differences: Sequence[MetricDifference], config: GateConfig) -> GateCheck:
    """Check that the candidate is on no slice worse than its tolerance allows."""
    name, required = "no slice worse", f"none worse by more than its tolerance ({config.tolerance:g}) and chance"
    if not differences:
        return GateCheck(name, None, "", required, f"no slice has {LEAST_ROWS} rows", True)
    ranked = sorted(differences, key=lambda d: d.value)
    worse = [d for d in ranked if d.worse]
    more = f" and {len(worse) - 5} more" if len(worse) > 5 else ""
    return GateCheck(
        name=name,
        passed=not worse,
        measured=f"{len(worse)} of {len(differences)} worse; {'' if worse else 'least: '}"
        f"{', '.join(map(_describe_difference, (worse or ranked[:1])[:5]))}{more}",
        required=required,
        explanation=f"slices by {', '.join(config.slices)} of at least {LEAST_ROWS} rows, and other tasks",
        compares=True,
    )


def check_not_worse_on_new_data(
    differences: Sequence[MetricDifference], config: GateConfig, not_applicable: str = ""
) -> GateCheck:
    """Check that the candidate is not worse on new data. It was trained on similar samples, and the champion was not.

    Args:
        differences: one for each task.
        not_applicable: why there is none.
    """
    name, required = "no worse on new data", f"by no more than the tolerance ({config.tolerance:g}) and chance"
    if not differences:
        return GateCheck(name, None, "", required, not_applicable, True)
    return GateCheck(
        name=name,
        passed=not any(d.worse for d in differences),
        measured=", ".join(map(_describe_difference, differences)),
        required=required,
        explanation="a gain on old data must not come with a loss on the data that come in now",
        compares=True,
    )


def _describe_difference(d: MetricDifference) -> str:
    return f"{d.name} {d.champion:.4f} → {d.candidate:.4f} ({d.rows} rows)"
