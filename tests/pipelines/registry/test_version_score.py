from __future__ import annotations

from dataclasses import replace

from pipelines.registry.version_score import VersionScore


def test_a_score_survives_its_tags(score: VersionScore) -> None:
    exact = replace(score, value=1 / 3)
    assert VersionScore.from_tags({**exact.to_tags(), "run_name": "x"}) == exact
    assert VersionScore.from_tags({"value": "0.5"}) is None


def test_what_a_metric_means_survives_too(score: VersionScore) -> None:
    told = replace(score, low=0.1, high=0.9, relation="unclear", verdict="not distinguishable from chance")
    assert VersionScore.from_tags(told.to_tags()) == told
    assert "verdict" not in score.to_tags()  # as of versions that were registered earlier
