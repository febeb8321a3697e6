"""A queue between the training step and a store of metrics: never blocks the step, writes each line exactly once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

MAX_WAITING = 1_000_000
"""Lines kept while the store cannot be reached; an hour of outage at 250 lines/s, some 100 MB."""


class QueueError(RuntimeError):
    """Lines that could not be written. The message says how many and why."""


@dataclass(frozen=True)
class Line:
    """One value of one metric. The time stamp is fixed here, so that writing a line again changes nothing."""

    key: str
    value: float
    step: int
    timestamp_ms: int


class MetricQueue:
    """Writes lines from a thread of its own, in order, at most one line for each (key, step).

    A line is a replay when the store already has its (key, step): the steps that a restarted process does again.
    A write that fails is tried again with the same time stamps until it succeeds or the queue is closed.

    Args:
        write: stores lines in one transaction; raises when it did not (or may not) succeed.
        written_steps: the steps that the store has of a key, asked once a key.
        interval_s: a line waits at most this long; what a killed process can lose.
        batch: most lines in one ``write``.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Line]], None],
        written_steps: Callable[[str], set[int]],
        interval_s: float = 0.5,
        batch: int = 1000,
    ) -> None:
        self._write, self._written_steps = write, written_steps
        self._interval_s, self._batch = interval_s, batch
        self._incoming: deque[Line] = deque()
        self._accepted: deque[Line] = deque()  # only the thread touches it
        self._steps: dict[str, set[int]] = {}
        self._failure: Exception | None = None
        self._idle = threading.Condition()
        self._unwritten = 0
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metric-queue", daemon=True)
        self._thread.start()

    def put(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue one line for each metric.

        Raises:
            QueueError: the queue is closed, or the store has been failing for so long that the queue is full.
        """
        if self._closed.is_set():
            raise QueueError("metrics were logged after the tracker was closed")
        now = time.time_ns() // 1_000_000
        with self._idle:
            if self._unwritten + len(metrics) > MAX_WAITING:
                raise QueueError(f"{self._unwritten} metric values wait to be written: {self._failure}")
            self._unwritten += len(metrics)
            self._incoming.extend(Line(key, value, step, now) for key, value in metrics.items())

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until every queued line is written.

        Raises:
            QueueError: it is not within ``timeout_s`` seconds.
        """
        self._wake.set()
        with self._idle:
            if not self._idle.wait_for(lambda: self._unwritten == 0, timeout_s):
                reason = self._failure or f"no answer within {timeout_s:g} s"
                raise QueueError(f"{self._unwritten} metric values are not written: {reason}")

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what is queued and end the thread; a second call does nothing.

        Raises:
            QueueError: some lines could not be written within ``timeout_s`` seconds; they are lost.
        """
        if self._closed.is_set():
            return
        try:
            self.flush(timeout_s)
        finally:
            self._closed.set()
            self._wake.set()
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        failures, warned = 0, 0.0
        while not self._closed.is_set():
            self._wake.wait(self._interval_s * min(2**failures, 32))
            self._wake.clear()
            try:
                self._accept()
                self._send()
                failures, self._failure = 0, None
            except Exception as error:  # whatever the store raises, training goes on and the lines stay queued
                failures, self._failure = failures + 1, error
                if time.monotonic() - warned > 60:
                    warned = time.monotonic()
                    log.warning("metrics are not written, trying again: %s", error)

    def _accept(self) -> None:
        while self._incoming:
            line = self._incoming[0]
            if line.key not in self._steps:
                self._steps[line.key] = self._written_steps(line.key)
            self._incoming.popleft()
            if line.step in self._steps[line.key]:
                self._done(1)
            else:
                self._steps[line.key].add(line.step)
                self._accepted.append(line)

    def _send(self) -> None:
        while self._accepted:
            lines = [self._accepted[index] for index in range(min(self._batch, len(self._accepted)))]
            self._write(lines)
            for _ in lines:
                self._accepted.popleft()
            self._done(len(lines))

    def _done(self, count: int) -> None:
        with self._idle:
            self._unwritten -= count
            if self._unwritten == 0:
                self._idle.notify_all()
