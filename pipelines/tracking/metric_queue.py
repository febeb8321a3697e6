"""A queue between the training step and a store of metrics: never blocks the step, writes each line exactly once."""

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
"""Lines kept while the store cannot be reached; an hour of outage at 250 lines/s, some 100 MB. Later ones are lost."""


class QueueError(RuntimeError):
    """Lines that could not be written. The message says how many and why."""


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric. The time stamp is fixed here, so that writing a line again changes nothing."""

    key: str
    value: float
    step: int
    timestamp_ms: int


class MetricQueue:
    """Writes lines from a thread of its own, in order, at most one line for each (key, step).

    A line is a replay when the store already has its (key, step): the steps that a restarted process does again.
    A write that fails is tried again with the same time stamps until it succeeds or the queue is closed. It is told
    once when the store is lost, and once when it is back.

    Args:
        write: stores lines in one transaction; raises when it did not (or may not) succeed.
        written_steps: the steps that the store has of a key, asked once a key.
        interval_s: a line waits at most this long; what a killed process can lose.
        batch: most lines in one ``write``.
        waiting: lines of a former process that are still to be written.
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
        self._lines = deque(unsent)  # the thread alone takes lines out
        self._lost = 0
        self._steps: dict[str, set[int]] = {}
        self._failure: Exception | None = None
        self._idle = threading.Condition()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metric-queue", daemon=True)
        self._thread.start()

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to write failed."""
        return self._failure is not None

    def put(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue one line for each metric. Where the store has been failing for so long that the queue is full, they are
        lost, which is told when it is back.

        Raises:
            QueueError: the queue is closed.
        """
        if self._closed.is_set():
            raise QueueError("metrics were logged after the tracker was closed")
        now = time.time_ns() // 1_000_000
        with self._idle:
            if len(self._lines) + len(metrics) > MAX_UNSENT:
                self._lost += len(metrics)
                return
            self._lines.extend(MetricPoint(key, value, step, now) for key, value in metrics.items())

    def unsent(self) -> list[MetricPoint]:
        """The lines that are not written, or not known to be."""
        with self._idle:
            return list(self._lines)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until every queued line is written.

        Raises:
            QueueError: it is not within ``timeout_s`` seconds.
        """
        self._wake.set()
        with self._idle:
            if not self._idle.wait_for(lambda: not self._lines, timeout_s):
                reason = self._failure or f"no answer within {timeout_s:g} s"
                raise QueueError(f"{len(self._lines)} metric values are not written: {reason}")

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what is queued and end the thread; a second call does nothing.

        Raises:
            QueueError: some lines could not be written within ``timeout_s`` seconds; ``unsent`` still has them.
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
        failures, begun = 0, 0.0
        while not self._closed.is_set():
            self._wake.wait(self._interval_s * min(2**failures, 16))
            self._wake.clear()
            try:
                self._send()
            except Exception as error:  # whatever the store raises, training goes on and the lines stay queued
                self._failure = error
                if not failures:
                    begun = time.monotonic()
                    log.warning("metrics are not recorded for now, and wait; training goes on: %s", error)
                failures += 1
                continue
            if failures:
                lost, self._lost = self._lost, 0
                log.warning(
                    "metrics are recorded again, after %.0f s; %s", time.monotonic() - begun,
                    f"{lost} values were too many to keep and are lost" if lost else "none were lost",
                )  # fmt: skip
            failures, self._failure = 0, None

    def _send(self) -> None:
        while True:
            with self._idle:
                lines = list(islice(self._lines, self._batch))
            if not lines:
                return
            new: dict[tuple[str, int], MetricPoint] = {}
            for line in lines:
                if line.key not in self._steps:
                    self._steps[line.key] = self._written_steps(line.key)
                if line.step not in self._steps[line.key]:
                    new.setdefault((line.key, line.step), line)
            if new:
                self._write(list(new.values()))
            for key, step in new:
                self._steps[key].add(step)
            with self._idle:
                for _ in lines:
                    self._lines.popleft()
                if not self._lines:
                    self._idle.notify_all()
