"""How much of what is asked a classifier of other data can answer."""

from __future__ import annotations

from pipelines.data.vocabulary import known_answers


def test_answers_count_as_often_as_they_occur() -> None:
    assert known_answers({"yes": 6, "no": 3, "mauve": 1}, ["no", "yes", "red"]) == 0.9
    assert known_answers({"mauve": 1}, ["yes"]) == 0.0
    assert known_answers({}, ["yes"]) == 1.0
