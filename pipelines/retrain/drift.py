"""Collects statistics of a data set, and measures the divergence between those of two data sets."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipelines.data.index.index import Index
from pipelines.data.index.present import split_input_names
from pipelines.data.index.shard_pass import map_shards
from pipelines.data.texts.corpus import read_texts
from pipelines.errors import DataError
from vlmodel.sample import SampleTexts

NAMES = (
    "questions", "captions", "conversations", "text_length", "inputs", "input_size", "image_size", "image_shape",
    "answers",
)  # fmt: skip
"""Of questions, captions and conversations the number a sample, and the length of their texts; which inputs a sample
has, and the bytes of each but the image; of an image its pixels and the ratio of its sides."""
Statistics = dict[str, dict[str, int]]
"""For each of ``NAMES`` a histogram of its values, or ranges of values."""

_MAX_VALUES = 1000
"""Number of the most frequent values in a histogram; the others count as one value."""
_MIN_EXPECTED = 5
"""Values with a smaller expected count in the smaller data set are merged, as in a chi-squared test: two samples share
few of them by chance."""
_OTHERS = "…"


def collect_split_statistics(index: Index, split: str = "train") -> Statistics:
    """Collect the statistics of a split by Ray Data, one task for each shard; only the texts of the tars are read."""

    def count(row: dict[str, Any]) -> dict[str, Any]:
        table = index.rows(row["item"])
        rows = [sample for sample in table.to_pylist() if sample["split"] == split]
        # As JSON: Ray Data infers the type of a column from its first rows.
        return {"counts": json.dumps(count_sample_statistics(rows, read_texts(index, split, [row["item"]])))}

    total: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    for row in map_shards([shard.name for shard in index.shards if split in shard.sample_counts], count):
        for name, counts in json.loads(row["counts"]).items():
            total[name].update(counts)
    return {name: _keep_most_frequent(counts, _MAX_VALUES) for name, counts in total.items()}


def count_sample_statistics(rows: Iterable[Mapping[str, Any]], texts: Iterable[SampleTexts]) -> Statistics:
    """Compute the statistics of samples, given by their rows of ``Index.rows`` and their texts."""
    total: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    for row in rows:
        for name in ("questions", "captions", "conversations"):
            total[name][_round_down_to_power_of_two(row[name])] += 1
        total["inputs"][row["present"]] += 1
        for name in split_input_names(row["present"]):
            if name != "image" and (size := row.get(f"{name}.size")) is not None:
                total["input_size"][f"{name} {_round_down_to_power_of_two(size)}"] += 1
        width, height = row.get("image.width"), row.get("image.height")
        if width and height:
            total["image_size"][_round_down_to_power_of_two(width * height)] += 1
            total["image_shape"][f"2^{round(2 * math.log2(width / height)) / 2:g}"] += 1
    for sample in texts:
        said = (turn.text for turns in sample.conversations for turn in turns)
        for text in (*sample.captions, *(question.question for question in sample.questions), *said):
            total["text_length"][_round_down_to_power_of_two(len(text))] += 1
        total["answers"].update(q.answer for q in sample.questions if q.answer is not None)
        total["answers"].update([] if sample.label is None else [sample.label])
    return {name: dict(counts) for name, counts in total.items()}


def statistic_divergences(before: Statistics, now: Statistics) -> dict[str, float]:
    """Compute the divergence of each statistic between two data sets; 0 if the earlier data set has no such
    statistic.
    """
    return {name: histogram_divergence(before.get(name, now[name]), now[name]) for name in NAMES}


def histogram_divergence(before: Mapping[str, int], now: Mapping[str, int]) -> float:
    """Compute the Jensen-Shannon divergence (Lin 1991) in bits of two histograms, minus its average for two samples of
    the same distribution, at least 0. It is 0 for two empty histograms, and 1 for an empty and a non-empty one.

    For K values and n and m observations that average is (K - 1)(1/n + 1/m) / (8 ln 2): near its minimum the
    divergence is a chi-squared statistic (Grosse et al. 2002, https://doi.org/10.1103/PhysRevE.65.041905).
    """
    if not before or not now:
        return float(bool(before) != bool(now))
    sizes = [sum(side.values()) for side in (before, now)]
    pooled = Counter(before) + Counter(now)
    frequent = [value for value, count in pooled.items() if count * min(sizes) >= _MIN_EXPECTED * sum(sizes)]
    counts = [[side.get(value, 0) for value in frequent] for side in (before, now)]
    counts_2K = np.array([[*of, size - sum(of)] for of, size in zip(counts, sizes, strict=True)], np.float64)
    counts_2K = counts_2K[:, counts_2K.any(axis=0)]
    sizes_2 = counts_2K.sum(axis=1)
    shares_2K = counts_2K / sizes_2[:, None]
    ratio_2K = shares_2K / shares_2K.mean(axis=0)
    terms_2K = shares_2K * np.log2(ratio_2K, out=np.zeros_like(ratio_2K), where=ratio_2K > 0)
    by_chance = (counts_2K.shape[1] - 1) * (1 / sizes_2).sum() / (8 * math.log(2))
    return float(max(0.0, terms_2K.sum() / 2 - by_chance))


def check_drift_limit(measured: Mapping[str, float], limit: float, before: str, now: str) -> None:
    """Raise an error if one of the ``statistic_divergences`` of new data is above the limit.

    Args:
        before, now: names of the data, for the message.

    Raises:
        DataError: naming each statistic that is above it.
    """
    above = [f"{name} {value:.3f}" for name, value in measured.items() if value > limit]
    if above:
        raise DataError(
            f"{now} differs from {before}: {', '.join(above)}, above retrain.max_drift = {limit}; "
            "see whether they are meant, and then raise this limit, or take the tars away, and start again"
        )


def _round_down_to_power_of_two(number: int) -> str:
    """Return the power of two at or below a number, as relative changes matter."""
    return str(1 << (number.bit_length() - 1)) if number > 0 else "0"


def _keep_most_frequent(counts: Mapping[str, int], size: int) -> dict[str, int]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[size:])
    return dict(ranked[:size]) | ({_OTHERS: rest} if rest else {})
