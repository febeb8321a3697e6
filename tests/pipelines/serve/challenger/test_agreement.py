"""How alike two answers are, worked by hand for each task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.serve.challenger.agreement import agreement, answer_pairs, confidence, difference
from pipelines.serve.service import Embeddings, Matches, ServiceRequest
from vlmodel.inference import Prediction


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
        ("match", Matches("matching", [0.2, 0.9]), Matches("matching", [0.4, 0.5]), 1.0),
        ("match", Matches("matching", [0.2, 0.9]), Matches("matching", [0.6, 0.5]), 0.0),
        ("match", Matches("matching", [0.2]), Matches("matching", [0.49]), 1.0),
        ("match", Matches("matching", [0.45]), Matches("matching", [0.55]), 0.0),
        ("match", Matches("similarity", [None], [0.3]), Matches("similarity", [None], [0.25]), 1.0),
        ("match", Matches("similarity", [None], [0.3]), Matches("similarity", [None], [0.1]), 0.0),
        ("embed", Embeddings(unit([0.6, 0.8])[0], unit([1, 0])), Embeddings(unit([0.8, 0.6])[0], unit([1, 0])), 0.96),
        ("embed", Embeddings(None, unit([1, 0])), Embeddings(None, unit([-1, 0])), 0.0),
        ("embed", Embeddings(None, unit([1, 0])), Embeddings(None, unit([1, 0, 0])), 0.0),
    ],
)
def test_agreement(task: Any, champion: Any, challenger: Any, expected: float) -> None:
    assert agreement(task, champion, challenger) == pytest.approx(expected)
    assert agreement(task, challenger, champion) == pytest.approx(expected)
    assert agreement(task, champion, champion) == pytest.approx(1.0)


def test_the_difference_of_matches_is_the_largest() -> None:
    assert difference("match", Matches("matching", [0.2, 0.9]), Matches("matching", [0.4, 0.5])) == pytest.approx(0.4)
    lone = [Matches("similarity", [None], [cosine]) for cosine in (0.3, -0.2)]
    assert difference("match", *lone) == pytest.approx(0.5)
    assert difference("vqa", [RED], [BLUE]) is None


def test_confidence() -> None:
    assert confidence("vqa", [RED, BLUE]) == pytest.approx(0.625)
    assert confidence("caption", [RED]) == 0.75
    assert confidence("match", Matches("matching", [0.2, 0.9])) == 0.9
    assert confidence("match", Matches("similarity", [None], [0.3])) == 0.3
    assert confidence("embed", Embeddings(None, unit([1, 0]))) is None


def test_what_people_can_correct() -> None:
    assert answer_pairs(ServiceRequest("vqa", b"", ("a", "b")), [RED, BLUE]) == [("a", "red"), ("b", "blue")]
    assert answer_pairs(ServiceRequest("caption", b""), [RED]) == [("", "red")]
    assert answer_pairs(ServiceRequest("match", b"", ("a",)), Matches("matching", [0.2])) == []
