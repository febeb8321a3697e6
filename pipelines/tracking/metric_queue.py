"""A queue between the training step and the metric store: it never blocks the step, and each value is written exactly
once.

MLflow's own asynchronous logging (``log_batch(synchronous=False)``) does not block either, but it gives up a batch that
the store refuses after its retries, cannot say which values are unsent, so that a checkpoint could not save them, and
writes the steps that a restarted training repeats a second time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

log = logging.getLogger(__name__)

MAX_UNSENT = 1_000_000
"""Values held while the store cannot be reached: an hour at 250 values/s, about 100 MB. Later ones are lost."""


class QueueError(RuntimeError):
    """Metric values could not be written. The message says how many and why."""


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric. Its time stamp is fixed here, so that writing the value again changes nothing."""

    key: str
    value: float
    step: int
    timestamp_ms: int


class MetricQueue:
    """Writes metric values in a separate thread, in order, at most one for each (key, step).

    A (key, step) that the store already has is skipped: restarted processes repeat steps. A failed write is retried
    with the same time stamps until it succeeds or the queue is closed. It is logged once that the store is lost, and
    once that it is back.

    Args:
        write: stores points in one transaction; raises if it did not (or may not) succeed.
        written_steps: the steps of a key that the store has; called once for each key.
        interval_s: longest time until a point is written, which a killed process can lose.
        batch: most points in one ``write``.
        unsent: points of an earlier process that are still to be written.
    """

    def __init__(
        self,
        write: Callable[[Sequence[MetricPoint]], None],
        written_steps: Callable[[str], set[int]],
        interval_s: float = 0.5,
        batch: int = 1000,
        unsent: Iterable[MetricPoint] = (),
    ) -> None:
        self._write, self._written_steps = write, written_steps
        self._interval_s, self._batch = interval_s, batch
        self._points = deque(unsent)  # only the thread removes points
        self._lost = 0
        self._steps: dict[str, set[int]] = {}
        self._failure: Exception | None = None
        self._idle = threading.Condition()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send_in_background, name="metric-queue", daemon=True)
        self._thread.start()

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to write failed."""
        return self._failure is not None

    def put(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue a point for each metric. If the queue is full, the points are lost, which is logged when the store is
        back.

        Raises:
            QueueError: the queue is closed.
        """
        if self._closed.is_set():
            raise QueueError("metrics were logged after the tracker was closed")
        now = time.time_ns() // 1_000_000
        with self._idle:
            if len(self._points) + len(metrics) > MAX_UNSENT:
                self._lost += len(metrics)
                return
            self._points.extend(MetricPoint(key, value, step, now) for key, value in metrics.items())

    def unsent(self) -> list[MetricPoint]:
        """Return the points that are not written, or not known to be."""
        with self._idle:
            return list(self._points)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until every queued point is written.

        Raises:
            QueueError: some are not within ``timeout_s`` seconds.
        """
        self._wake.set()
        with self._idle:
            if not self._idle.wait_for(lambda: not self._points, timeout_s):
                reason = self._failure or f"no answer within {timeout_s:g} s"
                raise QueueError(f"{len(self._points)} metric values are not written: {reason}")

    def close(self, timeout_s: float = 30.0) -> None:
        """Write the queued metric values and end the writing thread; a second call does nothing.

        Raises:
            QueueError: some points could not be written within ``timeout_s`` seconds; ``unsent`` still has them.
        """
        if self._closed.is_set():
            return
        try:
            self.flush(timeout_s)
        finally:
            self._closed.set()
            self._wake.set()
            self._thread.join(timeout=1.0)

    def _send_in_background(self) -> None:
        failures, lost_at = 0, 0.0
        while not self._closed.is_set():
            self._wake.wait(self._interval_s * min(2**failures, 16))
            self._wake.clear()
            try:
                self._send_pending()
            except Exception as error:  # whatever the store raises, training continues and the points stay queued
                self._failure = error
                if not failures:
                    lost_at = time.monotonic()
                    log.warning("metrics are not recorded for now, and stay queued; training continues: %s", error)
                failures += 1
                continue
            if failures:
                lost, self._lost = self._lost, 0
                log.warning(
                    "metrics are recorded again, after %.0f s; %s", time.monotonic() - lost_at,
                    f"{lost} values were too many to hold and are lost" if lost else "none were lost",
                )  # fmt: skip
            failures, self._failure = 0, None

    def _send_pending(self) -> None:
        while True:
            with self._idle:
                points = list(islice(self._points, self._batch))
            if not points:
                return
            new: dict[tuple[str, int], MetricPoint] = {}
            for point in points:
                if point.key not in self._steps:
                    self._steps[point.key] = self._written_steps(point.key)
                if point.step not in self._steps[point.key]:
                    new.setdefault((point.key, point.step), point)
            if new:
                self._write(list(new.values()))
            for key, step in new:
                self._steps[key].add(step)
            with self._idle:
                for _ in points:
                    self._points.popleft()
                if not self._points:
                    self._idle.notify_all()
