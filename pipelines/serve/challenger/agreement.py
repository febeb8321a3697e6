"""How alike the answers of two models to one request are. What that means is the task's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.serve.challenger.request import ServiceRequest
from pipelines.serve.service import Embeddings, Matches, Task
from vlmodel.inference import Prediction

_LIKE = 0.1
"""A lone text's cosine may differ by so much: there is no other text that one of the models could prefer."""


def agreement(task: Task, ours: Any, theirs: Any) -> float:
    """From 0 to 1.

    Of questions, the share that get the same first answer; of a picture's captions, whether the first is the same; of
    texts to be matched, whether the same one fits best, and of a lone text, whether both say that it fits (or, by
    similarity, about how well). Of embeddings it is the smallest cosine between the vectors of both, at least 0: near
    1 where vectors that the one has made can be compared with those of the other. Two models that were trained apart
    have spaces of their own, and are near 0 however good they are.

    Args:
        ours, theirs: ``ServiceResult.result`` of the same request.
    """
    if task == "match":
        return float(_same_choice(ours, theirs))
    if task == "embed":
        return _least_cosine(ours, theirs)
    pairs = list(zip(_firsts(task, ours), _firsts(task, theirs), strict=True))
    return sum(mine == other for (mine, _), (other, _) in pairs) / len(pairs)


def difference(task: Task, ours: Any, theirs: Any) -> float | None:
    """The largest difference of probabilities (of cosines, where there are none) between the same texts; None for
    other tasks.
    """
    if task != "match":
        return None
    return max(abs(mine - other) for mine, other in zip(_scores(ours), _scores(theirs), strict=True))


def confidence(task: Task, result: Any) -> float | None:
    """The mean probability of the first answers; the highest of a text that fits; None for embeddings."""
    if task == "embed":
        return None
    if task == "match":
        return max(_scores(result))
    return float(np.mean([probability for _, probability in _firsts(task, result)]))


def answer_pairs(asked: ServiceRequest, result: Any) -> list[tuple[str, str]]:
    """What people can correct: each question, "" for a caption, with the first answer."""
    if asked.task not in ("vqa", "caption"):
        return []
    return [(text, answer) for text, (answer, _) in zip(asked.texts or ("",), _firsts(asked.task, result), strict=True)]


def _firsts(task: Task, result: Any) -> list[tuple[str, float]]:
    predictions: Sequence[Prediction] = [result] if task == "caption" else result
    return [prediction.answers[0] for prediction in predictions]


def _same_choice(ours: Matches, theirs: Matches) -> bool:
    mine, others = _scores(ours), _scores(theirs)
    if len(mine) > 1:
        return int(np.argmax(mine)) == int(np.argmax(others))
    if ours.probabilities[0] is None or theirs.probabilities[0] is None:
        return abs(mine[0] - others[0]) <= _LIKE
    return (mine[0] >= 0.5) == (others[0] >= 0.5)


def _scores(found: Matches) -> list[float]:
    probabilities = [share for share in found.probabilities if share is not None]
    return probabilities or list(found.similarities or ())


def _least_cosine(ours: Embeddings, theirs: Embeddings) -> float:
    mine_ND, others_ND = _vectors(ours), _vectors(theirs)
    if mine_ND.shape != others_ND.shape:
        return 0.0
    return float(np.clip((mine_ND * others_ND).sum(1).min(), 0.0, 1.0))


def _vectors(found: Embeddings) -> NDArray[np.float32]:
    return found.text_ND if found.image_D is None else np.concatenate([found.image_D[None], found.text_ND])
