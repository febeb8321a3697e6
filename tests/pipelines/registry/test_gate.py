from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipelines.registry.gate import Score, decide


def test_the_first_model_must_beat_the_floor(score: Score) -> None:
    assert decide(score, None).promote
    refused = decide(replace(score, value=0.67), None)
    assert not refused.promote
    assert "accuracy 0.6700 on 1000 rows of val" in refused.reason
    assert "without looking (0.6700)" in refused.reason


def test_a_candidate_may_be_worse_by_no_more_than_the_margin(score: Score) -> None:
    champion = replace(score, value=0.92)
    assert decide(replace(score, value=0.93), champion).promote
    assert decide(champion, champion).promote, "as good is good enough"
    assert not decide(score, champion).promote
    assert decide(score, champion, margin=0.05).promote
    assert not decide(replace(score, value=0.86), champion, margin=0.05).promote
    assert "0.9000" in decide(score, champion).reason
    assert "champion (0.9200)" in decide(score, champion).reason


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"index_hash": "cd" * 32}, "same data (candidate abababababab, champion cdcdcdcdcdcd)"),
        ({"split": "test"}, "same split (candidate val, champion test)"),
        ({"metric": "cider"}, "same figure (candidate accuracy, champion cider)"),
        ({"count": 999}, "same number of rows (candidate 1000, champion 999)"),
    ],
)
def test_scores_on_other_data_are_not_compared(score: Score, change: dict[str, object], named: str) -> None:
    decision = decide(score, replace(score, **{"value": 0.1, **change}))  # type: ignore[arg-type]
    assert not decision.promote
    assert named in decision.reason


def test_a_candidate_without_accuracy_is_refused(score: Score) -> None:
    assert not decide(replace(score, value=math.nan), None).promote
    assert not decide(replace(score, count=0, floor=0.0), None).promote


def test_a_score_survives_its_tags(score: Score) -> None:
    exact = replace(score, value=1 / 3)
    assert Score.from_tags({**exact.to_tags(), "run_name": "x"}) == exact
    assert Score.from_tags({"value": "0.5"}) is None
