"""The service's metrics as Ray metrics, which Ray exports to Prometheus from every node."""

from __future__ import annotations

from typing import Any

from ray.serve.metrics import Counter, Histogram

from pipelines.serve.service import ChallengerMetrics, ServiceMetrics

_SECONDS = [0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
_SHARES = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99]
_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


# Ray annotates tag_keys as a tuple of one string.
_BY_ROUTE: Any = ("http_route", "model_version")
_BY_STATUS: Any = ("http_route", "status", "code", "model_version")
_BY_TASK: Any = ("task", "model_version")
_BY_OUTCOME: Any = ("task", "outcome", "model_version")
_BY_REASON: Any = ("task", "reason")


class RayMetrics(ServiceMetrics):
    """Metrics of the service. Created inside a replica, so that Serve tags each value with deployment and replica."""

    def __init__(self) -> None:
        self._requests = Counter(
            "vlmodel_requests",
            description="Answered requests; code is 'ok' or the reason of the refusal.",
            tag_keys=_BY_STATUS,
        )
        self._latency = Histogram(
            "vlmodel_request_seconds", "Time of a request inside the replica.", _SECONDS, _BY_ROUTE
        )
        self._batch_size = Histogram(
            "vlmodel_batch_images", "Requests in one forward pass, each with an image.", _SIZES, _BY_TASK
        )
        self._batch_seconds = Histogram("vlmodel_batch_seconds", "Time of one forward pass.", _SECONDS, _BY_TASK)

    def count_request(self, route: str, status: int, code: str, version: str, seconds: float) -> None:
        tags = {"http_route": route, "model_version": version}
        self._requests.inc(tags={**tags, "status": str(status), "code": code})
        self._latency.observe(seconds, tags=tags)

    def count_batch(self, task: str, size: int, seconds: float, version: str) -> None:
        tags = {"task": task, "model_version": version}
        self._batch_size.observe(size, tags=tags)
        self._batch_seconds.observe(seconds, tags=tags)


class RayChallengerMetrics(ChallengerMetrics):
    """Metrics of calls to the challenger. Created inside the champion's replicas."""

    def __init__(self) -> None:
        self._requests = Counter(
            "vlmodel_challenger_requests",
            description="Requests to the challenger; outcome is 'ok' or why there was no answer in time.",
            tag_keys=_BY_OUTCOME,
        )
        self._agreement = Histogram(
            "vlmodel_challenger_agreement", "How similar its answers and the champion's are, from 0 to 1.", _SHARES,
            _BY_TASK,
        )  # fmt: skip
        self._fallbacks = Counter(
            "vlmodel_challenger_fallbacks",
            description="Requests of its share that the champion answered.",
            tag_keys=_BY_REASON,
        )
        self._dropped = Counter(
            "vlmodel_challenger_dropped",
            description="Requests that were not compared ('busy', 'paused'), and writes that failed ('record').",
            tag_keys=("reason",),
        )

    def count_challenger_call(self, task: str, outcome: str, version: str) -> None:
        self._requests.inc(tags={"task": task, "outcome": outcome, "model_version": version})

    def count_comparison(self, task: str, agreement: float, version: str) -> None:
        self._agreement.observe(agreement, tags={"task": task, "model_version": version})

    def count_fallback_to_champion(self, task: str, reason: str) -> None:
        self._fallbacks.inc(tags={"task": task, "reason": reason})

    def count_dropped_comparison(self, reason: str) -> None:
        self._dropped.inc(tags={"reason": reason})
