"""Batches requests into forward passes, and decides on how many threads each pass runs."""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import torch

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")
_Batch: TypeAlias = list[tuple[Item, asyncio.Future[Result]]]

_log = logging.getLogger(__name__)

# The median of so many: a single slow pass may be chance.
_REMEMBERED = 3
# A number of threads this many times slower than another is given up after one pass.
_FAR_SLOWER = 2.0
# A slower number of threads is tried again after so long, then after four times as long, up to a minute.
_FIRST_RETRY_S, _RETRY_GROWTH, _LAST_RETRY_S = 2.0, 4.0, 60.0


class Batcher(Generic[Item, Result]):
    """Collects single items into batches for ``run``, which handles ``at_once`` batches at a time.

    A batch is cut when the model becomes free, never before: what arrives during a pass forms the next batch, so a
    single request does not wait and many fill the batches. (``ray.serve.batch`` cuts by a timer while the model is
    still busy: it queues many small batches, or delays every single request. With 32 callers and a pass of 18 ms +
    14 ms an image, its batches held 6 images and answered 47 requests/s; these hold 15 and answer 61.)

    Args:
        run: takes 1 to ``max_size`` items and returns as many results, in order.
        max_size: most items in a batch.
        at_once: most batches at one time. Each takes an equal share of the waiting items: a batch of all of them would
            leave the other passes nothing to do.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        max_size: int,
        at_once: int = 1,
    ) -> None:
        self._run_timed, self._max_size, self._at_once = run, max_size, at_once
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._running_items = 0
        self._workers: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Result:
        """Return the result for ``item``. The item of a cancelled caller is dropped if no batch contains it yet.

        If a batch fails, each of its items is run once more alone, so that a bad item does not fail its neighbours.

        Raises:
            Exception: whatever ``run`` raised for this item alone.
        """
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        if len(self._workers) < self._at_once:
            self._workers.add(asyncio.create_task(self._run_batches()))
        return await result

    async def _run_batches(self) -> None:
        try:
            # One turn of the loop lets requests that arrived together share their first batch.
            await asyncio.sleep(0)
            while batch := self._next_batch():
                await self._run_batch(batch)
        finally:  # not in a callback: until it ran, an item would wait for a worker that has ended
            worker = asyncio.current_task()
            assert worker is not None
            self._workers.discard(worker)

    def _next_batch(self) -> _Batch[Item, Result]:
        batch: _Batch[Item, Result] = []
        share = math.ceil((len(self._waiting) + self._running_items) / self._at_once)
        while self._waiting and len(batch) < min(share, self._max_size):
            item, result = self._waiting.popleft()
            if not result.done():
                batch.append((item, result))
        return batch

    async def _run_batch(self, batch: _Batch[Item, Result]) -> None:
        self._running_items += len(batch)
        try:
            error = await self._run_and_set_results(batch)
            if error is None:
                return
            if len(batch) > 1:
                _log.warning("a batch of %d failed; each of its items is run alone: %r", len(batch), error)
            for item, future in batch:
                alone = (
                    await self._run_and_set_results([(item, future)]) if len(batch) > 1 and not future.done() else error
                )
                if alone is not None and not future.done():
                    future.set_exception(alone)
        finally:
            self._running_items -= len(batch)

    async def _run_and_set_results(self, batch: _Batch[Item, Result]) -> Exception | None:
        """Set each item's result; return the exception if the batch fails."""
        try:
            results = await self._run_timed([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} items gave {len(results)} results")
        except Exception as error:
            return error
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
        return None


@dataclass(frozen=True)
class TimedResult(Generic[T]):
    """The result of a forward pass, and when it started and ended (``time.perf_counter``, in seconds)."""

    result: T
    started: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.started


class InferenceThreadPool:
    """Runs forward passes, a few at a time, which share the cores.

    The threads of a pass synchronize after every operation, so each waits for whatever else runs on its core: the
    proxy, decoders, Ray's processes. Passes of one thread each do not (2 cores, 8 and 32 callers: 17 and 19 requests/s
    with two passes side by side, 12 and 11 with one of two threads). So simultaneous passes share the cores, and one
    that runs alone takes the number of threads that was fastest for its kind (``ThreadChoice``).

    Args:
        passes: most at one time. On a GPU one, as several would compete for its memory.
        threads: of torch, for all passes. OpenMP has a number of threads for each calling thread, and Ray's
            OMP_NUM_THREADS would make it one.
    """

    def __init__(self, passes: int, threads: int) -> None:
        self._executor = ThreadPoolExecutor(passes, "model")
        self._threads = threads
        self._started: dict[int, float] = {}
        self._passes_begun = 0
        self._choices: dict[str, ThreadChoice] = {}
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], T], *, measured: bool = True, kind: str = "") -> TimedResult[T]:
        """Run ``work`` when a thread is free. If cancelled before that, it is not run.

        Args:
            measured: whether its time counts in ``longest_running_seconds`` and in the choice of threads.
            kind: of work: passes of one kind take about equally long on an idle machine. There are few kinds.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run_timed, work, measured, kind)

    def longest_running_seconds(self) -> float:
        """Return how long the longest of the current forward passes has been running; 0 without one."""
        now = time.perf_counter()
        with self._lock:
            return max([0.0, *(now - started for started in self._started.values())])

    def close(self) -> None:
        """Cancel waiting work, and end the threads after their current work."""
        self._executor.shutdown(cancel_futures=True)

    def _run_timed(self, work: Callable[[], T], measured: bool, kind: str) -> TimedResult[T]:
        started, this_thread = time.perf_counter(), threading.get_ident()
        with self._lock:
            self._started[this_thread] = started if measured else float("inf")
            self._passes_begun += 1
            is_alone, number = len(self._started) == 1 and measured, self._passes_begun
            choice = self._choices.setdefault(kind, ThreadChoice(self._threads))
            threads = choice.choose_threads(started) if is_alone else max(1, self._threads // len(self._started))
        try:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            timed = TimedResult(work(), started, time.perf_counter())
        finally:
            with self._lock:
                del self._started[this_thread]
        with self._lock:
            if is_alone and number == self._passes_begun:
                choice.record(threads, timed.seconds, timed.ended)
        return timed


class ThreadChoice:
    """Chooses the number of threads for forward passes of one kind that run alone: the number that was fastest lately.

    All threads, one less, and one are tried once each. The fastest stays until it takes longer than another did: where
    another process keeps one of the cores busy, a pass on all of them takes many times as long as on one (2 cores: 4
    requests/s against 27; without that process 40 against 29). The others are retried rarely. It reads no clock.

    Args:
        threads: most of them.
    """

    def __init__(self, threads: int) -> None:
        # In the order in which they are tried.
        numbers = dict.fromkeys((threads, max(1, threads - 1), 1))
        self._seconds: dict[int, deque[float]] = {number: deque(maxlen=_REMEMBERED) for number in numbers}
        self._wait_s = dict.fromkeys(numbers, _FIRST_RETRY_S)
        self._retry_at = dict.fromkeys(numbers, 0.0)
        self._best = threads

    def choose_threads(self, now: float) -> int:
        """Choose the number of threads for a pass that starts ``now`` (seconds on any clock)."""
        for threads, seconds in self._seconds.items():
            if not seconds or (threads != self._best and now >= self._retry_at[threads]):
                return threads
        return self._best

    def record(self, threads: int, seconds: float, now: float) -> None:
        """Record that a pass on this many threads, with no other beside it, took ``seconds`` and ended ``now``."""
        if threads != self._best:
            # Old times of a number that is seldom used say nothing about the present.
            self._seconds[threads].clear()
            self._schedule_retry(threads, now)
        self._seconds[threads].append(seconds)
        if len(self._seconds) == 1 or not all(self._seconds.values()):
            return
        other = min((number for number in self._seconds if number != self._best), key=self._median_seconds)
        best_s, other_s = self._median_seconds(self._best), self._median_seconds(other)
        far_slower = threads == self._best and seconds > _FAR_SLOWER * other_s
        if far_slower or best_s > other_s:
            previous, self._best = self._best, other
            self._seconds[previous] = deque([seconds if far_slower else best_s], _REMEMBERED)
            self._wait_s[previous] = _FIRST_RETRY_S
            self._schedule_retry(previous, now)

    def _schedule_retry(self, threads: int, now: float) -> None:
        self._retry_at[threads] = now + self._wait_s[threads]
        self._wait_s[threads] = min(self._wait_s[threads] * _RETRY_GROWTH, _LAST_RETRY_S)

    def _median_seconds(self, threads: int) -> float:
        return statistics.median(self._seconds[threads])
