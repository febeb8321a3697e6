"""How alike two answers are, worked by hand for each task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlmodel.inference import Prediction
from vlmodel.operations.base import all_operations
from vlmodel.operations.embed import Embeddings
from vlmodel.operations.match import MatchResult


def answered(*ranked: tuple[str, float]) -> Prediction:
    return Prediction(list(ranked))


def unit(*vectors: list[float]) -> Any:
    return np.array(vectors, np.float32)


RED, BLUE = answered(("red", 0.75), ("blue", 0.25)), answered(("blue", 0.5), ("red", 0.25))


@pytest.mark.parametrize(
    ("task", "champion", "challenger", "expected"),
    [
        ("vqa", [RED, RED], [RED, BLUE], 0.5),
        ("vqa", [RED], [answered(("red", 0.3))], 1.0),
        ("caption", [answered(("a disc", 0.1))], [answered(("a disc", 0.9))], 1.0),
        ("caption", [answered(("a disc", 0.1))], [answered(("a ring", 0.1))], 0.0),
        ("match", MatchResult("matching", [0.2, 0.9]), MatchResult("matching", [0.4, 0.5]), 1.0),
        ("match", MatchResult("matching", [0.2, 0.9]), MatchResult("matching", [0.6, 0.5]), 0.0),
        ("match", MatchResult("matching", [0.2]), MatchResult("matching", [0.49]), 1.0),
        ("match", MatchResult("matching", [0.45]), MatchResult("matching", [0.55]), 0.0),
        ("match", MatchResult("similarity", [None], [0.3]), MatchResult("similarity", [None], [0.25]), 1.0),
        ("match", MatchResult("similarity", [None], [0.3]), MatchResult("similarity", [None], [0.1]), 0.0),
        ("embed", Embeddings(unit([0.6, 0.8])[0], unit([1, 0])), Embeddings(unit([0.8, 0.6])[0], unit([1, 0])), 0.96),
        ("embed", Embeddings(None, unit([1, 0])), Embeddings(None, unit([-1, 0])), 0.0),
        ("embed", Embeddings(None, unit([1, 0])), Embeddings(None, unit([1, 0, 0])), 0.0),
    ],
)
def test_agreement(task: Any, champion: Any, challenger: Any, expected: float) -> None:
    assert all_operations()[task].result_agreement(champion, challenger) == pytest.approx(expected)
    assert all_operations()[task].result_agreement(challenger, champion) == pytest.approx(expected)
    assert all_operations()[task].result_agreement(champion, champion) == pytest.approx(1.0)


def test_the_difference_of_matches_is_the_largest() -> None:
    assert all_operations()["match"].largest_difference(
        MatchResult("matching", [0.2, 0.9]), MatchResult("matching", [0.4, 0.5])
    ) == pytest.approx(0.4)
    lone = [MatchResult("similarity", [None], [cosine]) for cosine in (0.3, -0.2)]
    assert all_operations()["match"].largest_difference(*lone) == pytest.approx(0.5)
    assert all_operations()["vqa"].largest_difference([RED], [BLUE]) is None


def test_confidence() -> None:
    assert all_operations()["vqa"].result_confidence([RED, BLUE]) == pytest.approx(0.625)
    assert all_operations()["caption"].result_confidence([RED]) == 0.75
    assert all_operations()["match"].result_confidence(MatchResult("matching", [0.2, 0.9])) == 0.9
    assert all_operations()["match"].result_confidence(MatchResult("similarity", [None], [0.3])) == 0.3
    assert all_operations()["embed"].result_confidence(Embeddings(None, unit([1, 0]))) is None


def test_what_people_can_correct() -> None:
    best = {name: operation.best_answers for name, operation in all_operations().items()}
    assert best["vqa"](("a", "b"), [RED, BLUE]) == [("a", "red"), ("b", "blue")]
    assert best["caption"](("",), [RED]) == [("", "red")]
    assert best["match"](("a",), MatchResult("matching", [0.2])) == []
    assert best["embed"](("a",), Embeddings(None, unit([1, 0]))) == []
