from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import ArrayLike

from pipelines.registry.config import GateConfig
from pipelines.registry.gate import comparison
from pipelines.registry.gate.comparison import (
    check_candidate_is_better,
    check_mcnemar,
    check_no_slice_is_worse,
    check_not_worse_on_new_data,
    have_same_rows,
    metric_difference,
    metric_differences_by_slice,
    row_masks_by_slice,
    with_tolerance,
)
from tests.pipelines.evaluate.test_build_report import answers
from vlmodel.config import ConfigError, parse_config
from vlmodel.metrics.scores import ExampleScores

CONFIG = GateConfig()


def right(score: ArrayLike, images: ArrayLike | None = None, groups: ArrayLike | None = None) -> ExampleScores:
    score_N = np.asarray(score, np.float64)
    rows = np.arange(len(score_N))
    image_N = rows if images is None else np.asarray(images)
    group_N = np.zeros(len(rows), np.int64) if groups is None else np.asarray(groups)
    return ExampleScores(score_N, group_N, image_N, rows, binary=True)


def ones(count: int, of: int) -> list[int]:
    return [1] * count + [0] * (of - count)


def test_the_bounds_are_those_of_the_normal_distribution_where_rows_are_many_and_independent() -> None:
    rng = np.random.default_rng(1)
    candidate, champion = rng.random(4000) < 0.8, rng.random(4000) < 0.75
    found = metric_difference("hold-out", right(candidate), right(champion), CONFIG)
    gain = candidate.astype(float) - champion
    half = 1.645 * gain.std() / np.sqrt(len(gain))
    assert found.value == pytest.approx(gain.mean())
    assert found.low == pytest.approx(gain.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(gain.mean() + half, abs=0.1 * half)


def test_rows_of_one_image_are_drawn_together() -> None:
    """Sixteen equal rows of each of 100 images say no more than the images do."""
    rng = np.random.default_rng(2)
    candidate, champion = (rng.random(100) < share for share in (0.7, 0.6))
    alone = metric_difference("images", right(candidate), right(champion), CONFIG)
    image_N = np.repeat(np.arange(100), 16)
    rows = metric_difference("rows", right(candidate[image_N], image_N), right(champion[image_N], image_N), CONFIG)
    assert (rows.low, rows.high) == pytest.approx((alone.low, alone.high))


def test_each_group_has_the_same_weight() -> None:
    groups = [0] * 90 + [1] * 10
    found = metric_difference("", right([1] * 100, groups=groups), right([1] * 90 + [0] * 10, groups=groups), CONFIG)
    assert (found.candidate, found.champion) == (1.0, 0.5)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))


def test_a_single_image_says_nothing() -> None:
    found = metric_difference("", right([1, 1], [0, 0]), right([0, 0], [0, 0]), CONFIG)
    assert not check_candidate_is_better(found, "accuracy", CONFIG).passed


@pytest.mark.parametrize(
    ("gained", "lost", "margin", "passes"),
    [(60, 20, 0.0, True), (60, 20, 0.035, False), (42, 38, 0.0, False), (20, 60, 0.0, False), (0, 0, 0.0, False)],
)
def test_better_is_above_the_margin_with_certainty(gained: int, lost: int, margin: float, passes: bool) -> None:
    candidate = [1] * gained + [0] * lost + [1] * (1000 - gained - lost)
    champion = [0] * gained + [1] * lost + [1] * (1000 - gained - lost)
    config = GateConfig(margin=margin)
    check = check_candidate_is_better(
        metric_difference("hold-out", right(candidate), right(champion), config), "accuracy", config
    )
    assert check.passed is passes
    assert f"{(gained - lost) / 1000:+.4f}" in check.measured


@pytest.mark.parametrize(("gained", "lost", "p"), [(5, 0, 1 / 32), (4, 0, 1 / 16), (7, 1, 9 / 256), (0, 0, 1.0)])
def test_mcnemar_counts_the_rows_that_one_of_them_has_right(gained: int, lost: int, p: float) -> None:
    candidate = [1] * gained + [0] * lost + [1] * 30
    champion = [0] * gained + [1] * lost + [1] * 30
    check = check_mcnemar(right(candidate), right(champion), CONFIG)
    assert f"p = {p:.3g}:" in check.measured
    assert check.passed is (p <= 0.05)


def test_three_rows_that_differ_satisfy_the_bootstrap_and_not_mcnemar() -> None:
    candidate, champion = right([1] * 1000), right(ones(997, 1000))
    assert check_mcnemar(candidate, champion, CONFIG).passed is False


def test_mcnemar_does_not_apply_to_metrics_of_other_kinds() -> None:
    graded = ExampleScores(np.array([0.3, 2.5]), np.zeros(2, np.int64), np.arange(2), np.arange(2), binary=False)
    assert check_mcnemar(graded, graded, CONFIG).passed is None


def test_slices_are_values_of_columns_and_kinds_of_questions() -> None:
    found = row_masks_by_slice(
        answers(("a", "Is it red?", "yes", "yes"), ("b", "is it big?", "no", "yes"), ("c", "", None, "no")),
        ["question_type", "target"],
    )
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "question_type=is it": [True, True, False],
        "target=no": [False, True, False],
        "target=yes": [True, False, False],
    }
    with pytest.raises(ConfigError, match=r"slices: 'colour' is no text column.*question_type, key"):
        parse_config(GateConfig, {"slices": ["target", "colour"]})


def test_a_slice_counts_against_the_candidate_where_it_is_beyond_its_tolerance_and_no_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "LEAST_ROWS", 40)
    config = GateConfig(tolerance=0.05, tolerances={"of=lenient": 0.5})
    rows = {name: np.repeat(np.arange(5) == n, 100) for n, name in enumerate(("of=much", "of=lenient", "of=little"))}
    rows["of=chance"] = np.arange(500) // 40 == 10  # 40 rows from 400 on
    rows["of=few"] = np.arange(500) >= 480
    champion = right([1] * 500)
    score = np.ones(500)
    score[:20] = score[100:120] = score[200:203] = score[480:] = 0
    score[400:403] = 0
    found = {one.name: one for one in metric_differences_by_slice(right(score), champion, rows, config)}
    assert set(found) == {"of=much", "of=lenient", "of=little", "of=chance"}, "slices of few rows are not judged"
    assert {name for name, one in found.items() if one.worse} == {"of=much", "of=chance"}
    check = check_no_slice_is_worse(list(found.values()), config)
    assert check.passed is False
    assert check.measured.startswith("2 of 4 worse; of=much 1.0000 → 0.8000 (100 rows), of=chance")
    assert check_no_slice_is_worse([found["of=little"]], config).passed
    assert check_no_slice_is_worse([], config).passed is None


def test_a_loss_that_may_be_chance_is_no_regression() -> None:
    """Of 50 rows five were lost and two gained: six per cent, and not significant."""
    candidate, champion = right([0] * 5 + [1] * 45), right([1] * 5 + [0] * 2 + [1] * 43)
    assert not with_tolerance(metric_difference("x=y", candidate, champion, CONFIG), 0.02).worse


@pytest.mark.parametrize(("tolerance", "passes"), [(0.02, False), (0.06, True)])
def test_on_new_data_a_candidate_may_be_worse_by_the_tolerance(tolerance: float, passes: bool) -> None:
    config = GateConfig(tolerance=tolerance)
    candidate, champion = right(ones(850, 1000)), right(ones(900, 1000))
    found = with_tolerance(metric_difference("new data", candidate, champion, config), config.tolerance)
    check = check_not_worse_on_new_data([found], config)
    assert check.passed is passes
    assert check.measured == "new data 0.9000 → 0.8500 (1000 rows)"
    assert f"({tolerance:g})" in check.required


def test_without_enough_new_data_there_is_nothing_to_hold_against_a_candidate() -> None:
    check = check_not_worse_on_new_data([], CONFIG, "too few rows")
    assert (check.passed, check.explanation) == (None, "too few rows")


def test_other_rows_are_noticed() -> None:
    one = answers(("a", "red?", "yes", "yes"))
    assert have_same_rows(one, answers(("a", "red?", "yes", "no")))
    assert not have_same_rows(one, answers(("a", "red?", "no", "yes")))
    assert not have_same_rows(one, pa.concat_tables([one, one]))
