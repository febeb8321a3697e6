"""The base class of operations whose result is a list of answers ranked by probability."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmodel.operations.base import BatchedRequest, Operation

if TYPE_CHECKING:
    from vlmodel.inference import Prediction, Predictor
    from vlmodel.task import Task


class RankedAnswersOperation(Operation):
    """An operation that returns a ``Prediction`` (ranked answers) for each text of a request."""

    def run(self, predictor: Predictor, task: str, items: Sequence[BatchedRequest]) -> list[list[Prediction]]:
        results: list[list[Prediction]] = [[] for _ in items]
        for top_k, indices in _group_by_answer_count(items, apart=predictor.processor.tasks[task].writes_text).items():
            attention = any(items[i].attention for i in indices)
            predictions = predictor.predict([items[i].example for i in indices], top_k, attention, task)
            for i, of_item in zip(indices, predictions, strict=True):
                item = items[i]
                hidden: dict[str, Any] = {} if item.attention else {"attention_HW": None, "attention_T": {}}
                results[i] = [replace(p, answers=p.answers[: item.top_k], **hidden) for p in of_item]
        return results

    def stream_result(self, predictor: Predictor, task: str, item: BatchedRequest, streamer: Any) -> list[Prediction]:
        [predictions] = predictor.predict([item.example], 1, item.attention, task, streamer=streamer)
        return predictions

    def warm_up_requests(self, task: Task) -> Iterable[tuple[int, bool]]:
        return ((top_k, True) for top_k in ((1, 2) if task.writes_text else (5,)))

    def result_agreement(self, champion: Sequence[Prediction], challenger: Sequence[Prediction]) -> float:
        """The share of texts to which both models give the same first answer."""
        pairs = list(zip(_first_answers(champion), _first_answers(challenger), strict=True))
        return sum(a == b for (a, _), (b, _) in pairs) / len(pairs)

    def result_confidence(self, result: Sequence[Prediction]) -> float:
        """The mean probability of the first answers to all texts."""
        return float(np.mean([probability for _, probability in _first_answers(result)]))

    def best_answers(self, query_texts: Sequence[str], result: Sequence[Prediction]) -> list[tuple[str, str]]:
        return [(text, answer) for text, (answer, _) in zip(query_texts, _first_answers(result), strict=True)]


def _group_by_answer_count(items: Sequence[BatchedRequest], apart: bool) -> dict[int, list[int]]:
    """Group the indices of requests by the number of answers that they ask for; each group is one forward pass.

    Args:
        apart: generated texts: a search with more beams may find others, so only requests that want the same number
            share a pass.
    """
    if not apart:
        return {max(item.top_k for item in items): list(range(len(items)))}
    passes: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        passes.setdefault(item.top_k, []).append(i)
    return passes


def _first_answers(predictions: Sequence[Prediction]) -> list[tuple[str, float]]:
    return [prediction.answers[0] for prediction in predictions]
