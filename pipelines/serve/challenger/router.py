"""The challenger beside the champion: a service that asks both, and lets neither callers nor champion wait for it.

Shadow: the champion answers; a copy of the request goes to the challenger afterwards. Canary: both are asked at once
and the challenger's answer is sent, the champion's where it fails or is late. The champion is asked too, though nobody
may see its answer: it has to have the capacity for all requests anyway, as it is what answers when the challenger
fails; so the failure of a challenger costs no second wait, and every request is a comparison.

This knows neither Ray nor HTTP. The challenger is another process (deployment.py), which may hang, crash or be missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pipelines.records.comparisons import Comparison, ComparisonWriter, text_hash
from pipelines.records.comparisons import ModelResult as Side
from pipelines.records.comparisons import TextPair as Text
from pipelines.serve.challenger.agreement import agreement, answer_pairs, confidence, difference
from pipelines.serve.challenger.request import ServiceRequest, dispatch
from pipelines.serve.config import ServeConfig
from pipelines.serve.errors import ApiError, internal
from pipelines.serve.service import Embeddings, Matches, ModelInfo, Service, ServiceResult, Task
from vlmodel.inference import Prediction

log = logging.getLogger(__name__)

# After so many failures in a row the challenger is left alone for a while; then one more makes the next pause.
_FAILURES, _PAUSE_S = 3, 5.0
# Enough of an image to tell it from others; the whole of a large one would hold up the event loop.
_HASHED_BYTES = 1 << 16


class ChallengerClient(Protocol):
    """The challenger, wherever it runs.

    Attributes:
        version: in the registry, as it was deployed.
    """

    version: str

    async def ask(self, request: ServiceRequest) -> ServiceResult[Any]:
        """Its answer.

        Raises:
            ApiError: it refuses the request.
            Exception: it cannot be reached, or failed.
        """


class ChallengerMetrics(Protocol):
    """Where it is counted what became of requests to the challenger."""

    def challenged(self, task: Task, outcome: str, version: str) -> None:
        """One request that it was asked; ``outcome`` is "ok" or why there is no answer."""

    def compared(self, task: Task, agreement: float, version: str) -> None:
        """Two answers to one request."""

    def fell_back(self, task: Task, reason: str) -> None:
        """The champion answered in its place."""

    def dropped(self, reason: str) -> None:
        """A request that was not compared ("busy", "paused"), or a comparison that was not kept ("record")."""


class NoChallengerMetrics:
    """Counts nothing."""

    def challenged(self, task: Task, outcome: str, version: str) -> None:
        pass

    def compared(self, task: Task, agreement: float, version: str) -> None:
        pass

    def fell_back(self, task: Task, reason: str) -> None:
        pass

    def dropped(self, reason: str) -> None:
        pass


@dataclass(frozen=True)
class _Outcome:
    """What came of asking one model: an answer, or what was raised and a name for it."""

    service_result: ServiceResult[Any] | None = None
    error: str = ""
    raised: Exception | None = None

    @property
    def result(self) -> Any:
        return self.service_result.result if self.service_result else None

    @property
    def is_callers_fault(self) -> bool:
        return isinstance(self.raised, ApiError) and self.raised.status < 500

    def get(self) -> ServiceResult[Any]:
        if self.service_result is None:
            raise self.raised or internal()
        return self.service_result


class ChallengerRouter:
    """A ``Service`` that answers with the champion, and asks the challenger beside it.

    Embeddings are the champion's even as a canary: vectors of two models in one caller's index compare with nothing.

    Args:
        champion: answers.
        rival: the challenger.
        config: ``config.challenger`` says whom it asks what, and how long it waits.
        writer: keeps what was compared; None keeps nothing.
        clock: seconds, for the pauses.
    """

    def __init__(
        self,
        champion: Service,
        challenger: ChallengerClient,
        config: ServeConfig,
        writer: ComparisonWriter | None = None,
        metrics: ChallengerMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._champion, self._challenger, self._config = champion, challenger, config.challenger
        self._limit_s = config.request_timeout_s
        self._writer, self._metrics, self._clock = writer, metrics or NoChallengerMetrics(), clock
        self._waiting = 0
        self._failures, self._paused_until = 0, 0.0
        self._background = set[asyncio.Task[None]]()
        self._flushing: asyncio.Task[None] | None = None

    @property
    def model(self) -> ModelInfo | None:
        """The champion."""
        return self._champion.model

    async def answer(
        self, image: bytes, questions: Sequence[str], top_k: int, attention: bool
    ) -> ServiceResult[Sequence[Prediction]]:
        """See ``Service``."""
        return await self._ask_both(ServiceRequest("vqa", image, tuple(questions), top_k, attention))

    async def caption(self, image: bytes, top_k: int, attention: bool) -> ServiceResult[Prediction]:
        """See ``Service``."""
        return await self._ask_both(ServiceRequest("caption", image, (), top_k, attention))

    async def stream_caption(
        self, image: bytes, attention: bool
    ) -> AsyncGenerator[str | ServiceResult[Prediction], None]:
        """See ``Service``. It is the champion's: what has been sent of a caption cannot be taken back."""
        pieces = await self._champion.stream_caption(image, attention)
        request = ServiceRequest("caption", image, (), 1, attention)
        return self._streamed(request, pieces) if self.is_chosen(request) else pieces

    async def match(self, image: bytes, texts: Sequence[str]) -> ServiceResult[Matches]:
        """See ``Service``."""
        return await self._ask_both(ServiceRequest("match", image, tuple(texts)))

    async def embed(self, image: bytes | None, texts: Sequence[str]) -> ServiceResult[Embeddings]:
        """See ``Service``."""
        return await self._ask_both(ServiceRequest("embed", image, tuple(texts)))

    async def check(self, image: bytes) -> ServiceResult[None]:
        """See ``Service``."""
        return await self._champion.check(image)

    def is_chosen(self, request: ServiceRequest) -> bool:
        """Whether the challenger is asked too: the same for all requests about an image (about the same texts, where
        there is none), and for each challenger another share of the images.
        """
        key = hashlib.sha256(self._challenger.version.encode() + b"\0")
        if request.image is None:
            key.update("\0".join(request.texts).encode())
        else:
            key.update(len(request.image).to_bytes(8) + request.image[:_HASHED_BYTES])
        return (int.from_bytes(key.digest()[:8]) >> 11) / 2**53 < self._config.share

    async def close(self) -> None:
        """Write what was compared, when what still is has ended, or had the time that the challenger has."""
        if self._background:
            _, late = await asyncio.wait(list(self._background), timeout=self._config.timeout_s)
            for task in late:
                task.cancel()
        if self._flushing is not None:
            self._flushing.cancel()
        await self._flush()

    async def _ask_both(self, request: ServiceRequest) -> ServiceResult[Any]:
        if not self.is_chosen(request):
            return await dispatch(self._champion, request)
        if self._config.mode == "canary" and request.task != "embed":
            return await self._run_canary(request)
        champion_outcome = await _outcome(dispatch(self._champion, request))
        self._run_shadow(request, champion_outcome)
        return champion_outcome.get()

    async def _run_canary(self, request: ServiceRequest) -> ServiceResult[Any]:
        if reason := self._skip_reason():
            self._metrics.dropped(reason)
            self._metrics.fell_back(request.task, reason)
            return await dispatch(self._champion, request)
        champion_task = asyncio.create_task(_outcome(dispatch(self._champion, request)))
        challenger = asyncio.create_task(self._ask_challenger(request))
        self._hold_until(asyncio.gather(champion_task, challenger, return_exceptions=True))
        try:
            challenger_outcome = await challenger
        except asyncio.CancelledError:
            champion_task.cancel()
            raise
        if challenger_outcome.service_result is not None:
            self._spawn(self._compare_when_ready(request, champion_task, challenger_outcome))
            return replace(challenger_outcome.service_result, side="challenger")
        champion_outcome = await champion_task
        # What both refuse was no failure of the challenger.
        if not champion_outcome.is_callers_fault:
            self._metrics.fell_back(request.task, challenger_outcome.error)
            self._spawn(self._compare(request, champion_outcome, challenger_outcome, fallback=True))
        return champion_outcome.get()

    async def _streamed(
        self, request: ServiceRequest, pieces: AsyncGenerator[str | ServiceResult[Prediction], None]
    ) -> AsyncGenerator[str | ServiceResult[Prediction], None]:
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, ServiceResult):
                    self._run_shadow(request, _Outcome(piece))
                yield piece

    def _run_shadow(self, request: ServiceRequest, champion_outcome: _Outcome) -> None:
        """Ask the challenger what the champion was asked, beside whatever comes next."""
        if champion_outcome.is_callers_fault:
            return
        if reason := self._skip_reason():
            self._metrics.dropped(reason)
            return
        self._hold_until(self._spawn(self._compare_copy(request, champion_outcome)))

    def _skip_reason(self) -> str:
        """Why the challenger is not to be asked now; "" where it is."""
        if self._waiting >= self._config.max_waiting:
            return "busy"
        return "paused" if self._clock() < self._paused_until else ""

    def _hold_until(self, ended: asyncio.Future[Any]) -> None:
        """Count one more request that waits."""

        def free(_: object) -> None:
            self._waiting -= 1

        self._waiting += 1
        ended.add_done_callback(free)

    async def _ask_challenger(self, request: ServiceRequest) -> _Outcome:
        try:
            async with asyncio.timeout(self._config.timeout_s):
                outcome = await _outcome(self._challenger.ask(request))
        except TimeoutError:
            outcome = _Outcome(error="late")
        self._metrics.challenged(request.task, outcome.error or "ok", self._version_of(outcome))
        if outcome.service_result is not None or outcome.is_callers_fault:
            self._failures = 0
        else:
            self._failed(outcome)
        return outcome

    def _failed(self, outcome: _Outcome) -> None:
        self._failures += 1
        if self._failures >= _FAILURES:
            self._paused_until = self._clock() + _PAUSE_S
            self._failures = _FAILURES - 1
            log.warning("the challenger fails (%s: %r); not asked for %g s", outcome.error, outcome.raised, _PAUSE_S)

    async def _compare_copy(self, request: ServiceRequest, champion_outcome: _Outcome) -> None:
        await self._compare(request, champion_outcome, await self._ask_challenger(request))

    async def _compare_when_ready(
        self, request: ServiceRequest, champion_task: asyncio.Task[_Outcome], challenger_outcome: _Outcome
    ) -> None:
        try:
            async with asyncio.timeout(self._limit_s):
                champion_outcome = await champion_task
        except TimeoutError:
            champion_outcome = _Outcome(error="late")
        if not champion_outcome.is_callers_fault:
            await self._compare(request, champion_outcome, challenger_outcome)

    async def _compare(
        self, request: ServiceRequest, champion_outcome: _Outcome, challenger_outcome: _Outcome, fallback: bool = False
    ) -> None:
        pair, task = (champion_outcome.result, challenger_outcome.result), request.task
        both = champion_outcome.service_result is not None and challenger_outcome.service_result is not None
        alike = agreement(task, *pair) if both else None
        if alike is not None:
            self._metrics.compared(task, alike, self._version_of(challenger_outcome))
        if self._writer is None:
            return
        comparison = Comparison(
            time_ns=time.time_ns(),
            task=task,
            mode="canary" if self._config.mode == "canary" else "shadow",
            model=self.model.name if self.model else "",
            image=await asyncio.to_thread(lambda: request.image_sha256),
            champion=_side(task, champion_outcome, self.model.version if self.model else ""),
            challenger=_side(task, challenger_outcome, self._version_of(challenger_outcome)),
            fallback=fallback,
            agreement=alike,
            difference=difference(task, *pair) if both else None,
            texts=_texts(request, *pair) if both else (),
        )
        if not self._writer.add(comparison):
            self._metrics.dropped("record")
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_later())

    def _version_of(self, challenger_outcome: _Outcome) -> str:
        return (
            challenger_outcome.service_result.model.version
            if challenger_outcome.service_result
            else self._challenger.version
        )

    async def _flush_later(self) -> None:
        await asyncio.sleep(self._config.flush_s)
        self._flushing = None
        self._spawn(self._flush())

    async def _flush(self) -> None:
        if self._writer is None:
            return
        try:
            await asyncio.to_thread(self._writer.flush)
        except Exception as error:  # whatever ails the disk or store, callers have their answers
            self._metrics.dropped("record")
            log.warning("comparisons with the challenger are not kept: %s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a comparison with the challenger failed", exc_info=error)


async def _outcome(champion_task: Awaitable[ServiceResult[Any]]) -> _Outcome:
    try:
        return _Outcome(await champion_task)
    except ApiError as error:
        return _Outcome(error=error.code, raised=error)
    except Exception as error:
        return _Outcome(error=type(error).__name__, raised=error)


def _side(task: Task, outcome: _Outcome, version: str) -> Side:
    if outcome.service_result is None:
        return Side(version=version, error=outcome.error)
    return Side(
        version=outcome.service_result.model.version,
        seconds=sum(outcome.service_result.stages_s.values()),
        confidence=confidence(task, outcome.result),
    )


def _texts(request: ServiceRequest, champion_outcome: Any, challenger_outcome: Any) -> tuple[Text, ...]:
    pairs = zip(answer_pairs(request, champion_outcome), answer_pairs(request, challenger_outcome), strict=True)
    return tuple(
        Text(asked=text_hash(text), champion=text_hash(champion_text), challenger=text_hash(challenger_text))
        for (text, champion_text), (_, challenger_text) in pairs
    )
