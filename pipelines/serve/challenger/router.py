"""A service that answers with the champion and also calls the challenger for a share of the requests.

Shadow: the champion answers; afterwards the challenger gets a copy of the request. Canary: both are called at once and
the challenger's result is sent, or the champion's if the challenger fails or is late. The champion is called either
way: it needs the capacity for all requests anyway, a failed challenger then costs no second wait, and every request is
a comparison.

This knows neither Ray nor HTTP. The challenger is another process (deployment.py), which may hang, crash or be missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from pipelines.records.comparisons import ComparisonWriter
from pipelines.registry.own_examples import ModelExample
from pipelines.serve.challenger.background import BackgroundTasks
from pipelines.serve.challenger.calls import CallOutcome, ChallengerCaller, ChallengerClient, await_outcome
from pipelines.serve.challenger.recorder import ComparisonRecorder
from pipelines.serve.config import ServeConfig
from pipelines.serve.service import AnswerStream, ChallengerMetrics, ModelInfo, Service, ServiceRequest, ServiceResult
from vlmodel.operations.base import all_operations

# The beginning of an image tells it from others; hashing all of a large one would block the event loop.
_HASHED_BYTES = 1 << 16


class ChallengerRouter:
    """A ``Service`` that answers by the champion or the challenger and compares both. Results that cannot be mixed,
    such as vectors, are always the champion's.

    Args:
        config: ``config.challenger`` has the mode, the share and the limits.
        writer: keeps the comparisons; None keeps none.
        clock: seconds, for the pauses after failures.
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
        self._request_timeout_s = config.request_timeout_s
        self._metrics = metrics or ChallengerMetrics()
        self._is_canary = config.challenger.mode == "canary"
        self._caller = ChallengerCaller(challenger, config.challenger, self._metrics, clock)
        self._background = BackgroundTasks()
        self._recorder = ComparisonRecorder(config.challenger, writer, self._metrics, self._background)

    @property
    def model(self) -> ModelInfo | None:
        """The champion."""
        return self._champion.model

    @property
    def examples(self) -> Sequence[ModelExample]:
        """Examples of the champion's own data."""
        return self._champion.examples

    async def run(self, request: ServiceRequest) -> ServiceResult:
        """See ``Service``."""
        if not self.is_sent_to_challenger(request):
            return await self._champion.run(request)
        if self._is_canary and all_operations()[request.task].may_mix_models:
            return await self._answer_with_challenger(request)
        champion = await await_outcome(self._champion.run(request))
        self._call_challenger_in_background(request, champion)
        return champion.result_or_raise()

    async def stream(self, request: ServiceRequest) -> AnswerStream:
        """Stream the champion's answer, see ``Service``: pieces that were sent cannot be replaced by the
        challenger's.
        """
        pieces = await self._champion.stream(request)
        return self._stream_and_call_challenger(request, pieces) if self.is_sent_to_challenger(request) else pieces

    async def check_image(self, image: bytes) -> ServiceResult:
        """See ``Service``."""
        return await self._champion.check_image(image)

    def is_sent_to_challenger(self, request: ServiceRequest) -> bool:
        """Whether the challenger is called for a request too: the same decision for all requests about the same inputs
        (or texts, without inputs), and another share of them for each challenger version.
        """
        key = hashlib.sha256(self._challenger.version.encode() + b"\0")
        for _, data in sorted(request.inputs.items()):
            key.update(len(data).to_bytes(8) + data[:_HASHED_BYTES])
        if not request.inputs:
            key.update("\0".join(request.texts).encode())
        return (int.from_bytes(key.digest()[:8]) >> 11) / 2**53 < self._config.share

    async def close(self) -> None:
        """See ``ComparisonRecorder``."""
        await self._recorder.close()

    async def _answer_with_challenger(self, request: ServiceRequest) -> ServiceResult:
        if reason := self._caller.skip_reason():
            self._metrics.count_dropped_comparison(reason)
            self._metrics.count_fallback_to_champion(request.task, reason)
            return await self._champion.run(request)
        champion_task = asyncio.create_task(await_outcome(self._champion.run(request)))
        challenger_task = asyncio.create_task(self._caller.call(request))
        self._caller.count_request_until_done(asyncio.gather(champion_task, challenger_task, return_exceptions=True))
        try:
            challenger = await challenger_task
        except asyncio.CancelledError:
            champion_task.cancel()
            raise
        if challenger.answer is not None:
            self._background.spawn(self._record_comparison_when_ready(request, champion_task, challenger))
            return replace(challenger.answer, alias="challenger")
        champion = await champion_task
        # A request that both refuse is no failure of the challenger.
        if not champion.is_client_error:
            self._metrics.count_fallback_to_champion(request.task, challenger.error)
            self._background.spawn(self._record_comparison(request, champion, challenger, fallback=True))
        return champion.result_or_raise()

    async def _stream_and_call_challenger(self, request: ServiceRequest, pieces: AnswerStream) -> AnswerStream:
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, ServiceResult):
                    self._call_challenger_in_background(request, CallOutcome(piece))
                yield piece

    def _call_challenger_in_background(self, request: ServiceRequest, champion: CallOutcome) -> None:
        """Call the challenger in the background, and record the comparison with the champion."""
        if champion.is_client_error:
            return
        if reason := self._caller.skip_reason():
            self._metrics.count_dropped_comparison(reason)
            return

        async def call_challenger_and_record_comparison() -> None:
            await self._record_comparison(request, champion, await self._caller.call(request))

        self._caller.count_request_until_done(self._background.spawn(call_challenger_and_record_comparison()))

    async def _record_comparison_when_ready(
        self, request: ServiceRequest, champion_task: asyncio.Task[CallOutcome], challenger: CallOutcome
    ) -> None:
        try:
            async with asyncio.timeout(self._request_timeout_s):
                champion = await champion_task
        except TimeoutError:
            champion = CallOutcome(error="late")
        if not champion.is_client_error:
            await self._record_comparison(request, champion, challenger)

    async def _record_comparison(
        self, request: ServiceRequest, champion: CallOutcome, challenger: CallOutcome, fallback: bool = False
    ) -> None:
        version = self._caller.version_of_outcome(challenger)
        await self._recorder.record(request, self.model, champion, challenger, version, fallback)
