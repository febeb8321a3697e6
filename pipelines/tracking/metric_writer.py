"""Writes the metrics of one run to MLflow; values that the store does not accept are saved in the run's folder."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.tracking.address import TrackingError, check_reachable
from pipelines.tracking.metric_queue import MetricPoint, MetricQueue, QueueError
from pipelines.tracking.store import mlflow_errors
from pipelines.tracking.unsent_metrics import UnsentMetrics
from vlmodel.locations import redact_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_CHECKPOINT_WAIT_S, _CLOSE_WAIT_S = 2.0, 20.0


class MetricWriter:
    """Queues the metrics of one run and writes them in a thread, which starts with the first metric.

    Args:
        uri: of the store.
        client: connects to the store; called from the queue's thread.
        unsent: file for metrics that the store does not take. If None, ``close`` fails instead.
    """

    def __init__(
        self, uri: str, run_id: str, client: Callable[[], MlflowClient], unsent: UnsentMetrics | None = None
    ) -> None:
        self._uri, self._run_id, self._client, self._unsent = uri, run_id, client, unsent
        self._queue: MetricQueue | None = None
        if unsent is not None:
            try:
                self._queue = self._new_queue(unsent.read())
            except OSError as error:
                log.warning("unsent metrics in the run's folder cannot be read: %s", error)

    def put(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue one value of each metric and return at once."""
        if self._queue is None:
            self._queue = self._new_queue()
        with self._queue_errors():
            self._queue.put({key: float(value) for key, value in metrics.items()}, step)

    def persist(self) -> None:
        """Write what is queued to the store within two seconds, or else to the run's folder."""
        if self._queue is not None and self._unsent is not None:
            if not self._queue.is_failing:
                with contextlib.suppress(QueueError):
                    self._queue.flush(_CHECKPOINT_WAIT_S)
            self._save_unsent(self._queue.unsent())

    def send(self, points: Sequence[MetricPoint]) -> None:
        """Write points that another process queued.

        Raises:
            TrackingError: the store does not take them.
        """
        if points:
            queue = self._new_queue(points)
            with self._queue_errors():
                queue.close()

    def flush(self) -> None:
        """Wait until all queued metrics are stored.

        Raises:
            TrackingError: the store does not take them.
        """
        if self._queue is not None:
            with self._queue_errors():
                self._queue.flush()

    def close(self) -> None:
        """Write the queued metric values and end the writing thread. What cannot be written is saved in the run's
        folder.

        Raises:
            TrackingError: it cannot be stored, and there is no such folder.
        """
        if self._queue is None:
            return
        if self._unsent is None:
            with self._queue_errors():
                self._queue.close()
            return
        try:
            self._queue.close(1.0 if self._queue.is_failing else _CLOSE_WAIT_S)
        except QueueError as error:
            log.warning("%s; they are saved in the run's folder", redact_secrets(str(error)))
        self._save_unsent(self._queue.unsent())

    def _new_queue(self, unsent: Sequence[MetricPoint] = ()) -> MetricQueue:
        return MetricQueue(self._write_points, self._written_steps, unsent=unsent)

    def _save_unsent(self, points: Sequence[MetricPoint]) -> None:
        assert self._unsent is not None
        try:
            self._unsent.write(points)
        except OSError as error:  # if the disk is full, the checkpoint itself will fail
            log.warning("%d metric values are in memory only: %s", len(points), error)

    def _write_points(self, points: Sequence[MetricPoint]) -> None:
        check_reachable(self._uri)
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in points]
        with mlflow_errors(f"write metrics of run {self._run_id}"):
            self._client().log_batch(self._run_id, metrics=metrics, synchronous=True)

    def _written_steps(self, key: str) -> set[int]:
        check_reachable(self._uri)
        with mlflow_errors(f"read the metrics of run {self._run_id}"):
            return {metric.step for metric in self._client().get_metric_history(self._run_id, key)}

    @contextlib.contextmanager
    def _queue_errors(self) -> Iterator[None]:
        try:
            yield
        except QueueError as error:
            raise TrackingError(
                f"{redact_secrets(str(error))}; check that the tracking store {redact_secrets(self._uri)} runs and has "
                "space, then run again"
            ) from error
