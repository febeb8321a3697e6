"""Statistics counted by hand, a divergence from SciPy, and a limit that chance does not reach."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.errors import DataError
from pipelines.retrain.drift import (
    NAMES,
    check_drift_limit,
    collect_split_statistics,
    histogram_divergence,
    statistic_divergences,
)
from tests.pipelines.data.tar_maker import photo, series, texts, write_tar

HISTOGRAMS = st.tuples(*[st.integers(100, 500)] * 4, st.integers(0, 4)).map(
    lambda drawn: {value: count for n, (value, count) in enumerate(zip("abcd", drawn, strict=False)) if n != drawn[4]}
)
"""Counts of four values, of which one may not occur; all are frequent enough to be compared."""


def test_the_statistics_of_a_split(ray_local: None, tmp_path: Path) -> None:
    def sample(key: str, size: tuple[int, int], captions: list[str], *pairs: tuple[str, str | None]):
        questions = [{"question": question, "answer": answer} for question, answer in pairs]
        tree = {"captions": captions, "questions": questions}
        return [(f"{key}.jpg", photo(0, size)), (f"{key}.json", json.dumps(tree).encode())]

    write_tar(tmp_path, "train-000000.tar", sample("a", (40, 40), ["four"], ("is it?", "yes"), ("why is it so?", None)))
    write_tar(tmp_path, "train-000001.tar", sample("b", (64, 32), [], ("is it?", "yes"), ("is it?", "no"), ("x", "no")))
    write_tar(tmp_path, "test-000000.tar", sample("c", (9, 9), ["not counted"]))
    statistics = collect_split_statistics(build_index(str(tmp_path), IndexConfig(validation_fraction=0.0)))
    assert statistics == {
        "questions": {"2": 2},  # two and three: the power of two at or below
        "captions": {"1": 1, "0": 1},
        "conversations": {"0": 2},
        "text_length": {"4": 4, "8": 1, "1": 1},
        "inputs": {"captions,image,questions": 1, "image,questions": 1},
        "input_size": {},
        "image_size": {"1024": 1, "2048": 1},
        "image_shape": {"2^0": 1, "2^1": 1},
        "answers": {"yes": 2, "no": 2},
    }


def test_the_statistics_of_other_inputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("pipelines.data.index.build", "pipelines.retrain.drift"):
        monkeypatch.setattr(
            f"{module}.map_shards", lambda items, work: (work(i if isinstance(i, dict) else {"item": i}) for i in items)
        )
    entries = [("1.imu.npy", series(1)), ("2.imu.npy", series(2, (500, 3))), ("2.jpg", photo(2)), ("3.json", texts(3))]
    write_tar(tmp_path, "train-000000.tar", entries)
    config = IndexConfig(inputs=("image?", "imu?", "text?"), validation_fraction=0.0)
    statistics = collect_split_statistics(build_index(str(tmp_path), config))
    assert statistics["inputs"] == {"imu": 1, "image,imu": 1, "captions,questions": 1}
    assert statistics["input_size"] == {"imu 256": 1, "imu 4096": 1}
    assert statistics["image_size"] == {"1024": 1}
    older = {name: of for name, of in statistics.items() if name not in ("inputs", "input_size")}
    assert statistic_divergences(older, statistics)["inputs"] == 0.0, "what was not collected before is not compared"


@given(HISTOGRAMS, HISTOGRAMS)
def test_the_divergence_is_scipys_less_what_chance_gives(before: dict[str, int], now: dict[str, int]) -> None:
    values = sorted(before.keys() | now.keys())
    counts = [np.array([side.get(value, 0) for value in values], float) for side in (before, now)]
    expected = jensenshannon(*counts, base=2) ** 2
    chance = (len(values) - 1) * (1 / counts[0].sum() + 1 / counts[1].sum()) / (8 * np.log(2))
    assert histogram_divergence(before, now) == pytest.approx(max(0.0, expected - chance), abs=1e-9)
    assert histogram_divergence(before, now) == pytest.approx(histogram_divergence(now, before))


def test_two_samples_of_one_distribution_are_alike_on_average() -> None:
    """Without the correction 400 observations of 50 values would be 0.05 bits from themselves, and 40 of them 0.5."""
    rng = np.random.default_rng(0)

    def sample(size: int) -> dict[str, int]:
        values, counts = np.unique(rng.integers(0, 50, size), return_counts=True)
        return dict(zip(map(str, values.tolist()), counts.tolist(), strict=True))

    for size in (40, 400, 4000):
        found = [histogram_divergence(sample(size), sample(size)) for _ in range(100)]
        assert np.mean(found) < 0.01
        assert max(found) < 0.04


def test_nothing_in_common_is_the_most() -> None:
    assert histogram_divergence({"a": 10_000}, {"b": 10_000}) == pytest.approx(1.0, abs=1e-3)
    assert histogram_divergence({}, {}) == 0.0
    assert histogram_divergence({"a": 3}, {}) == 1.0


def test_rare_values_count_as_one() -> None:
    before = {"often": 1000} | {f"once {n}": 1 for n in range(500)}
    now = {"often": 1000} | {f"another {n}": 1 for n in range(500)}
    assert histogram_divergence(before, now) < 0.05


def test_data_above_a_limit_are_refused_with_all_that_moved() -> None:
    same = {name: {"1": 100} for name in NAMES}
    moved = statistic_divergences(same, same | {"answers": {"2": 100}, "captions": {"0": 50, "1": 50}})
    check_drift_limit(moved, 1.0, "cycle A", "cycle B")
    with pytest.raises(DataError) as refused:
        check_drift_limit(moved, 0.2, "cycle A", "cycle B")
    assert "answers 0.99" in str(refused.value)
    assert "captions 0." in str(refused.value)
    assert "retrain.max_drift = 0.2" in str(refused.value)
    assert "image_size" not in str(refused.value)
