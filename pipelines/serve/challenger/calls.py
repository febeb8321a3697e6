"""Calls champion and challenger and returns the outcome as a value; calls of the challenger are limited in time and
number.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.serve.config import ChallengerConfig
from pipelines.serve.errors import ApiError, internal_error
from pipelines.serve.service import ChallengerMetrics, ServiceRequest, ServiceResult

log = logging.getLogger(__name__)

MAX_WAITING = 16
"""Requests that each replica of the champion has at the challenger at once; the champion alone gets the others."""
# After so many failures in a row the challenger is not called for a while; each further failure makes one more pause.
_MAX_FAILURES, _PAUSE_S = 3, 5.0


class ChallengerClient(Protocol):
    """The interface for calling the challenger, wherever it runs.

    Attributes:
        version: in the registry, as it was deployed.
    """

    version: str

    async def run(self, request: ServiceRequest) -> ServiceResult:
        """Return the challenger's result.

        Raises:
            ApiError: it refuses the request.
            Exception: it cannot be reached, or failed.
        """


@dataclass(frozen=True)
class CallOutcome:
    """The outcome of calling one model with a request: a result, or the exception and its name."""

    answer: ServiceResult | None = None
    error: str = ""
    raised: Exception | None = None

    @property
    def result(self) -> Any:
        return self.answer.result if self.answer else None

    @property
    def is_client_error(self) -> bool:
        return isinstance(self.raised, ApiError) and self.raised.status < 500

    def result_or_raise(self) -> ServiceResult:
        if self.answer is None:
            raise self.raised or internal_error()
        return self.answer


async def await_outcome(call: Awaitable[ServiceResult], timeout_s: float | None = None) -> CallOutcome:
    """Await a call and return its outcome; one that takes longer than ``timeout_s`` is "late"."""
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return CallOutcome(await call)
    except ApiError as error:
        return CallOutcome(error=error.code, raised=error)
    except Exception as error:
        return CallOutcome(error="late") if limit.expired() else CallOutcome(error=type(error).__name__, raised=error)


class ChallengerCaller:
    """Calls the challenger with at most ``MAX_WAITING`` requests at once, each for at most ``timeout_s``, and not at
    all for a while after repeated failures (a circuit breaker).

    Args:
        clock: seconds, for the pauses.
    """

    def __init__(
        self,
        client: ChallengerClient,
        config: ChallengerConfig,
        metrics: ChallengerMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._config, self._metrics, self._clock = client, config, metrics, clock
        self._waiting = 0
        self._failures, self._paused_until = 0, 0.0

    def skip_reason(self) -> str:
        """Return why the challenger must not be called now; "" if it may."""
        if self._waiting >= MAX_WAITING:
            return "busy"
        return "paused" if self._clock() < self._paused_until else ""

    def count_request_until_done(self, ended: asyncio.Future[Any]) -> None:
        """Count one more waiting request until the future ``ended`` is done."""

        def _decrement_waiting_requests(_: object) -> None:
            self._waiting -= 1

        self._waiting += 1
        ended.add_done_callback(_decrement_waiting_requests)

    def version_of_outcome(self, outcome: CallOutcome) -> str:
        """Return the version that gave the outcome; that of the deployment if there is no result."""
        return outcome.answer.model.version if outcome.answer else self._client.version

    async def call(self, request: ServiceRequest) -> CallOutcome:
        """Call the challenger; returns its result, or why there is none."""
        outcome = await await_outcome(self._client.run(request), self._config.timeout_s)
        self._metrics.count_challenger_call(request.task, outcome.error or "ok", self.version_of_outcome(outcome))
        if outcome.answer is not None or outcome.is_client_error:
            self._failures = 0
        else:
            self._count_failure(outcome)
        return outcome

    def _count_failure(self, outcome: CallOutcome) -> None:
        self._failures += 1
        if self._failures >= _MAX_FAILURES:
            self._paused_until = self._clock() + _PAUSE_S
            self._failures = _MAX_FAILURES - 1
            log.warning("the challenger fails (%s: %r); not called for %g s", outcome.error, outcome.raised, _PAUSE_S)
