"""Compares the outcomes of the two models, counts comparisons as metrics, and writes them to a folder."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from pipelines.records.comparisons import Comparison, ComparisonWriter, ModelResult, TextPair, text_hash
from pipelines.serve.challenger.background import BackgroundTasks
from pipelines.serve.challenger.calls import CallOutcome
from pipelines.serve.config import ChallengerConfig
from pipelines.serve.service import ChallengerMetrics, ModelInfo, ServiceRequest
from vlmodel.operations.base import Operation, all_operations

log = logging.getLogger(__name__)


FLUSH_S = 15.0
"""Seconds after which comparisons are written. A replica that is killed loses those that are not."""


class ComparisonRecorder:
    """Compares two outcomes of a request and records the comparison.

    Args:
        writer: keeps the comparisons; None keeps none.
        background: runs the writing.
    """

    def __init__(
        self,
        config: ChallengerConfig,
        writer: ComparisonWriter | None,
        metrics: ChallengerMetrics,
        background: BackgroundTasks,
    ) -> None:
        self._config, self._writer, self._metrics, self._background = config, writer, metrics, background
        self._flush_timer: asyncio.TimerHandle | None = None

    async def record(
        self,
        request: ServiceRequest,
        model: ModelInfo | None,
        champion: CallOutcome,
        challenger: CallOutcome,
        challenger_version: str,
        fallback: bool = False,
    ) -> None:
        """Compare the outcomes of champion and challenger for a request and record the comparison.

        Args:
            model: the champion.
            fallback: whether the champion answered in the challenger's place.
        """
        operation = all_operations()[request.task]
        task, both = request.task, champion.answer is not None and challenger.answer is not None
        score = operation.result_agreement(champion.result, challenger.result) if both else None
        if score is not None:
            self._metrics.count_comparison(task, score, challenger_version)
        if self._writer is None:
            return
        comparison = Comparison(
            time_ns=time.time_ns(),
            task=task,
            mode="canary" if self._config.mode == "canary" else "shadow",
            model=model.name if model else "",
            image=await asyncio.to_thread(lambda: request.image_sha256),
            champion=_model_result(operation, champion, model.version if model else ""),
            challenger=_model_result(operation, challenger, challenger_version),
            fallback=fallback,
            agreement=score,
            difference=operation.largest_difference(champion.result, challenger.result) if both else None,
            texts=_hash_question_answer_pairs(operation, request, champion.result, challenger.result) if both else (),
        )
        if not self._writer.add(comparison):
            self._metrics.count_dropped_comparison("record")
        if self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_S, self._start_flush)

    async def close(self) -> None:
        """Write the recorded comparisons. Comparisons that still run get as much time as an answer of the
        challenger.
        """
        await self._background.drain(self._config.timeout_s)
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        await self._write_pending()

    def _start_flush(self) -> None:
        self._flush_timer = None
        self._background.spawn(self._write_pending())

    async def _write_pending(self) -> None:
        if self._writer is None:
            return
        try:
            await asyncio.to_thread(self._writer.flush)
        except Exception as error:  # a failing disk or store must not concern callers
            self._metrics.count_dropped_comparison("record")
            log.warning("comparisons with the challenger are not written: %s", error)


def _model_result(operation: Operation, outcome: CallOutcome, version: str) -> ModelResult:
    if outcome.answer is None:
        return ModelResult(version=version, error=outcome.error)
    return ModelResult(
        version=outcome.answer.model.version,
        seconds=sum(outcome.answer.stages_s.values()),
        confidence=operation.result_confidence(outcome.result),
    )


def _hash_question_answer_pairs(
    operation: Operation, request: ServiceRequest, champion: Any, challenger: Any
) -> tuple[TextPair, ...]:
    best = (operation.best_answers(request.texts, result) for result in (champion, challenger))
    pairs = zip(*best, strict=True)
    return tuple(
        TextPair(asked=text_hash(text), champion=text_hash(answer), challenger=text_hash(challenger_answer))
        for (text, answer), (_, challenger_answer) in pairs
    )
