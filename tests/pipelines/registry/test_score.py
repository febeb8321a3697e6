from __future__ import annotations

from dataclasses import replace

from pipelines.registry.score import Score


def test_a_score_survives_its_tags(score: Score) -> None:
    exact = replace(score, value=1 / 3)
    assert Score.from_tags({**exact.to_tags(), "run_name": "x"}) == exact
    assert Score.from_tags({"value": "0.5"}) is None
