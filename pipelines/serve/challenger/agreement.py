"""How alike the answers of two models to one request are. What that means is the task's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.serve.challenger.request import ServiceRequest
from pipelines.serve.service import Embeddings, Matches, Task
from vlmodel.inference import Prediction

_COSINE_TOLERANCE = 0.1
"""A lone text's cosine may differ by so much: there is no other text that one of the models could prefer."""


def agreement(task: Task, champion: Any, challenger: Any) -> float:
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
        return float(_is_same_choice(champion, challenger))
    if task == "embed":
        return _least_cosine(champion, challenger)
    pairs = list(zip(_top_answers(task, champion), _top_answers(task, challenger), strict=True))
    return sum(champion_value == challenger_value for (champion_value, _), (challenger_value, _) in pairs) / len(pairs)


def difference(task: Task, champion: Any, challenger: Any) -> float | None:
    """The largest difference of probabilities (of cosines, where there are none) between the same texts; None for
    other tasks.
    """
    if task != "match":
        return None
    return max(
        abs(champion_value - challenger_value)
        for champion_value, challenger_value in zip(_scores(champion), _scores(challenger), strict=True)
    )


def confidence(task: Task, result: Any) -> float | None:
    """The mean probability of the first answers; the highest of a text that fits; None for embeddings."""
    if task == "embed":
        return None
    if task == "match":
        return max(_scores(result))
    return float(np.mean([probability for _, probability in _top_answers(task, result)]))


def answer_pairs(request: ServiceRequest, result: Any) -> list[tuple[str, str]]:
    """What people can correct: each question, "" for a caption, with the first answer."""
    if request.task not in ("vqa", "caption"):
        return []
    return [
        (text, answer)
        for text, (answer, _) in zip(request.texts or ("",), _top_answers(request.task, result), strict=True)
    ]


def _top_answers(task: Task, result: Any) -> list[tuple[str, float]]:
    predictions: Sequence[Prediction] = [result] if task == "caption" else result
    return [prediction.answers[0] for prediction in predictions]


def _is_same_choice(champion: Matches, challenger: Matches) -> bool:
    champion_value, others = _scores(champion), _scores(challenger)
    if len(champion_value) > 1:
        return int(np.argmax(champion_value)) == int(np.argmax(others))
    if champion.probabilities[0] is None or challenger.probabilities[0] is None:
        return abs(champion_value[0] - others[0]) <= _COSINE_TOLERANCE
    return (champion_value[0] >= 0.5) == (others[0] >= 0.5)


def _scores(matches: Matches) -> list[float]:
    probabilities = [share for share in matches.probabilities if share is not None]
    return probabilities or list(matches.similarities or ())


def _least_cosine(champion: Embeddings, challenger: Embeddings) -> float:
    mine_ND, others_ND = _vectors(champion), _vectors(challenger)
    if mine_ND.shape != others_ND.shape:
        return 0.0
    return float(np.clip((mine_ND * others_ND).sum(1).min(), 0.0, 1.0))


def _vectors(matches: Embeddings) -> NDArray[np.float32]:
    return matches.text_ND if matches.image_D is None else np.concatenate([matches.image_D[None], matches.text_ND])
