"""How similar the answers of two models to one request are, by the task's own measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.serve.service import Embeddings, Matches, ServiceRequest, Task
from vlmodel.inference import Prediction

_COSINE_TOLERANCE = 0.1
"""Two cosines of a single text agree within this, as there is no other text to rank it against."""


def agreement(task: Task, champion: Any, challenger: Any) -> float:
    """A number from 0 to 1 for two ``ServiceResult.result`` of one request.

    - vqa, caption: the share of questions (or the one caption) with the same first answer.
    - match: 1 if both models rank the same text first; for a single text, if both say that it fits, or if their
      cosines are close.
    - embed: the smallest cosine between the two models' vectors, at least 0. Models that were trained independently
      have unrelated spaces and are near 0 however good they are.
    """
    if task == "match":
        return float(_same_choice(champion, challenger))
    if task == "embed":
        return _smallest_cosine(champion, challenger)
    pairs = list(zip(_first_answers(champion), _first_answers(challenger), strict=True))
    return sum(a == b for (a, _), (b, _) in pairs) / len(pairs)


def difference(task: Task, champion: Any, challenger: Any) -> float | None:
    """The largest difference of the texts' probabilities (cosines for a single text); None for tasks but match."""
    if task != "match":
        return None
    return max(abs(a - b) for a, b in zip(_match_scores(champion), _match_scores(challenger), strict=True))


def confidence(task: Task, result: Any) -> float | None:
    """The mean probability of the first answers; the highest score of a match; None for embeddings."""
    if task == "embed":
        return None
    if task == "match":
        return max(_match_scores(result))
    return float(np.mean([probability for _, probability in _first_answers(result)]))


def answer_pairs(request: ServiceRequest, result: Any) -> list[tuple[str, str]]:
    """What people can correct: (question, first answer), with "" as the question of a caption."""
    if request.task not in ("vqa", "caption"):
        return []
    texts = request.texts or ("",)
    return [(text, answer) for text, (answer, _) in zip(texts, _first_answers(result), strict=True)]


def _first_answers(predictions: Sequence[Prediction]) -> list[tuple[str, float]]:
    return [prediction.answers[0] for prediction in predictions]


def _same_choice(champion: Matches, challenger: Matches) -> bool:
    scores, others = _match_scores(champion), _match_scores(challenger)
    if len(scores) > 1:
        return int(np.argmax(scores)) == int(np.argmax(others))
    if champion.probabilities[0] is None or challenger.probabilities[0] is None:
        return abs(scores[0] - others[0]) <= _COSINE_TOLERANCE
    return (scores[0] >= 0.5) == (others[0] >= 0.5)


def _match_scores(matches: Matches) -> list[float]:
    probabilities = [probability for probability in matches.probabilities if probability is not None]
    return probabilities or list(matches.similarities or ())


def _smallest_cosine(champion: Embeddings, challenger: Embeddings) -> float:
    vectors_ND, others_ND = _embedding_vectors(champion), _embedding_vectors(challenger)
    if vectors_ND.shape != others_ND.shape:
        return 0.0
    return float(np.clip((vectors_ND * others_ND).sum(1).min(), 0.0, 1.0))


def _embedding_vectors(embeddings: Embeddings) -> NDArray[np.float32]:
    image_D, text_ND = embeddings.image_D, embeddings.text_ND
    return text_ND if image_D is None else np.concatenate([image_D[None], text_ND])
