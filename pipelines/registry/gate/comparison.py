"""Is the candidate better than the champion, on the same rows, by more than chance? And is it worse anywhere?

Two tests, as each is blind where the other sees. The paired bootstrap draws whole images, whose rows are not
independent of each other, and holds for any figure; of a handful of rows that differ it makes too much. McNemar's exact
test (1947) counts just those rows, and holds for right and wrong answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from pipelines.evaluate.example_scores import ExampleScores
from pipelines.evaluate.intervals import difference_interval
from pipelines.registry.config import GateConfig
from pipelines.registry.gate.check import Check, Difference
from vlmodel.config import ConfigError

QUESTION_TYPE = "question_type"
_SAME = ("key", "split", "text", "target", "references", "id")


def same_rows(candidate: pa.Table, champion: pa.Table) -> bool:
    """Whether two tables of answers are about the same rows in the same order."""
    return candidate.select(_SAME).equals(champion.select(_SAME))


def difference(name: str, candidate: ExampleScores, champion: ExampleScores, config: GateConfig) -> Difference:
    """By how much the candidate's figure is above the champion's on the same rows, with bounds of the paired bootstrap
    (percentiles) over images. A single image has no bounds but infinity.
    """
    low, high = difference_interval(candidate, champion, 1 - 2 * config.alpha, config.resamples, config.seed)
    return Difference(name, len(candidate), candidate.value, champion.value, low, high)


def check_better(found: Difference, metric: str, config: GateConfig) -> Check:
    """Whether the whole interval of the difference lies above the margin."""
    return Check(
        name="better on the hold-out",
        passed=bool(found.low > config.margin),
        measured=(
            f"{metric} {found.candidate:.4f} against {found.champion:.4f}, {found.value:+.4f}, above {found.low:+.4f} "
            f"with {1 - config.alpha:.0%} certainty"
        ),
        required=f"above {config.margin:+.4f} with {1 - config.alpha:.0%} certainty",
        explanation=f"paired bootstrap over images, {config.resamples} resamples, {found.rows} rows",
        compares=True,
    )


def check_mcnemar(candidate: ExampleScores, champion: ExampleScores, config: GateConfig) -> Check:
    """McNemar's exact test, one-sided: of the rows that only one of them has right, does the candidate have more?"""
    name, required = "not by chance", f"p at most {config.alpha:g}"
    if not candidate.binary:
        return Check(name, None, "", required, "McNemar's test is of right and wrong answers; see the bootstrap", True)
    gained = int(((candidate.score_N == 1) & (champion.score_N == 0)).sum())
    lost = int(((candidate.score_N == 0) & (champion.score_N == 1)).sum())
    p = float(stats.binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue) if gained + lost else 1.0
    return Check(
        name=name,
        passed=p <= config.alpha,
        measured=f"p = {p:.3g}: only the candidate is right {gained} times, only the champion {lost} times",
        required=required,
        explanation="McNemar's exact test, one-sided",
        compares=True,
    )


def slices(answers: pa.Table, names: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """The rows of each slice, by "name=value", most frequent first. Rows without a value are in none.

    Raises:
        ConfigError: a name that is no text column of the table.
    """
    texts = [field.name for field in answers.schema if pa.types.is_string(field.type)]
    found: dict[str, NDArray[np.bool_]] = {}
    for name in names:
        if name == QUESTION_TYPE:
            values = pa.array([" ".join(text.lower().split()[:2]) or None for text in answers["text"].to_pylist()])
        elif name in texts:
            values = answers[name]
        else:
            raise ConfigError(
                f"registry.gate.slices: {name!r} is no text column of the answers; use {QUESTION_TYPE}, "
                f"{', '.join(texts)}"
            )
        counts = [(item["counts"], item["values"]) for item in pc.value_counts(values.cast(pa.string())).to_pylist()]
        for _, value in sorted(counts, key=lambda item: (-item[0], item[1] or "")):
            if value is not None:
                found[f"{name}={value}"] = pc.fill_null(pc.equal(values, value), False).to_numpy(zero_copy_only=False)
    return found


def slice_differences(
    candidate: ExampleScores, champion: ExampleScores, rows: Mapping[str, NDArray[np.bool_]], config: GateConfig
) -> list[Difference]:
    """The difference on each slice that has enough rows."""
    found = []
    for name, chosen in rows.items():
        candidate_slice, champion_slice = candidate.select_rows(chosen), champion.select_rows(chosen)
        if len(candidate_slice) >= config.slice_rows:
            found.append(with_slice_tolerance(difference(name, candidate_slice, champion_slice, config), config))
    return found


def with_slice_tolerance(found: Difference, config: GateConfig) -> Difference:
    """As ``with_tolerance``, with the tolerance of this slice."""
    return with_tolerance(found, config.slice_tolerances.get(found.name, config.slice_tolerance))


def with_tolerance(found: Difference, tolerance: float) -> Difference:
    """The difference with its tolerance, and whether it is beyond that and no chance."""
    return replace(found, tolerance=tolerance, worse=bool(found.value < -tolerance and found.high < 0))


def check_slices(found: Sequence[Difference], config: GateConfig) -> Check:
    """Whether no slice is worse than its tolerance."""
    name, required = "no slice worse", f"none worse by more than its tolerance ({config.slice_tolerance:g}) and chance"
    if not found:
        return Check(name, None, "", required, f"no slice has {config.slice_rows} rows", True)
    worse = sorted((one for one in found if one.worse), key=lambda one: one.value)
    least = min(found, key=lambda one: one.value)
    shown = [f"{one.name} {one.champion:.4f} → {one.candidate:.4f} ({one.rows} rows)" for one in (worse or [least])[:5]]
    more = f" and {len(worse) - 5} more" if len(worse) > 5 else ""
    return Check(
        name=name,
        passed=not worse,
        measured=f"{len(worse)} of {len(found)} worse; {'' if worse else 'least: '}{', '.join(shown)}{more}",
        required=required,
        explanation=f"slices by {', '.join(config.slices)} of at least {config.slice_rows} rows, and other tasks",
        compares=True,
    )


def check_new_data(found: Sequence[Difference], config: GateConfig, why_none: str = "") -> Check:
    """Whether the candidate has lost nothing on new data, of which it has seen the like and the champion has not.

    Args:
        found: a difference for each task.
        why_none: why there is none.
    """
    name, required = "no worse on new data", f"by no more than the tolerance ({config.new_tolerance:g}) and chance"
    if not found:
        return Check(name, None, "", required, why_none, True)
    return Check(
        name=name,
        passed=not any(one.worse for one in found),
        measured=", ".join(f"{one.name} {one.champion:.4f} → {one.candidate:.4f} ({one.rows} rows)" for one in found),
        required=required,
        explanation="what the hold-out has of old must not be won by losing what comes in now",
        compares=True,
    )
