"""The threads that run the forward passes of all tasks, and what they are at."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

# A median of so many: one slow pass among them is chance.
_REMEMBERED = 3
# Slower by so much than another number of threads would be is none, and is left at once.
_FAR_SLOWER = 2.0
# A number of threads that was slower is tried again after so long, then after four times as long, up to a minute.
_FIRST_RETRY_S, _RETRY_GROWS, _LAST_RETRY_S = 2.0, 4.0, 60.0


@dataclass(frozen=True)
class TimedResult(Generic[T]):
    """What a pass gave, and when it started and ended (``time.perf_counter``, in seconds)."""

    result: T
    started: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.started


class ThreadChoice:
    """How many threads a pass of one kind takes that has the cores to itself: as many as were quickest lately.

    All threads, one less, and one are tried once each. The quickest stays until it takes longer than another did:
    threads of one pass wait for each other after every operation, so where another process keeps one of the cores
    busy, a pass on all of them takes many times as long as on one (2 cores: 4 requests/s against 27; without that
    process 40 against 29). The others are tried again rarely. It reads no clock: times are given to it.

    Args:
        threads: most of them.
    """

    def __init__(self, threads: int) -> None:
        # As they are to be tried: dicts keep their order.
        numbers = dict.fromkeys((threads, max(1, threads - 1), 1))
        self._seconds: dict[int, deque[float]] = {number: deque(maxlen=_REMEMBERED) for number in numbers}
        self._wait_s = dict.fromkeys(numbers, _FIRST_RETRY_S)
        self._retry_at = dict.fromkeys(numbers, 0.0)
        self._best = threads

    def take(self, now: float) -> int:
        """Threads for a pass that starts ``now`` (seconds on any clock)."""
        for number, seconds in self._seconds.items():
            if not seconds or (number != self._best and now >= self._retry_at[number]):
                return number
        return self._best

    def tell(self, number: int, seconds: float, now: float) -> None:
        """A pass with ``number`` threads took ``seconds`` and ended ``now``; nothing ran beside it."""
        if number != self._best:
            # How it was long ago says nothing about today.
            self._seconds[number].clear()
            self._retry_later(number, now)
        self._seconds[number].append(seconds)
        if len(self._seconds) == 1 or not all(self._seconds.values()):
            return
        other = min((one for one in self._seconds if one != self._best), key=self._usual)
        here, there = self._usual(self._best), self._usual(other)
        far_slower = number == self._best and seconds > _FAR_SLOWER * there
        if far_slower or here > there:
            left, self._best = self._best, other
            self._seconds[left] = deque([seconds if far_slower else here], _REMEMBERED)
            self._wait_s[left] = _FIRST_RETRY_S
            self._retry_later(left, now)

    def _retry_later(self, number: int, now: float) -> None:
        self._retry_at[number] = now + self._wait_s[number]
        self._wait_s[number] = min(self._wait_s[number] * _RETRY_GROWS, _LAST_RETRY_S)

    def _usual(self, number: int) -> float:
        return statistics.median(self._seconds[number])


class InferenceThreadPool:
    """Passes, a few at a time, that share the cores.

    The threads of one pass wait for each other after every operation, and so for whatever else runs on their cores: the
    proxy, the decoders, Ray's own processes. Passes of one thread each wait for nobody (2 cores, 8 and 32 callers: 17
    and 19 requests/s by two passes side by side, 12 and 11 by one with two threads). So passes side by side share the
    cores, and one that is alone takes as many threads as are quickest for its kind (``ThreadChoice``).

    Args:
        passes: most at one time. On a GPU one, as several would fight for its memory.
        threads: of torch, for all of them. The number of OpenMP threads belongs to the thread that calls, and Ray's
            OMP_NUM_THREADS would make it one.
    """

    def __init__(self, passes: int, threads: int) -> None:
        self._executor = ThreadPoolExecutor(passes, "model")
        self._threads = threads
        self._started: dict[int, float] = {}
        self._begun = 0
        self._choices: dict[str, ThreadChoice] = {}
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], T], *, watched: bool = True, kind: str = "") -> TimedResult[T]:
        """Do ``work`` when a thread is free. One that is cancelled before its turn is never done.

        Args:
            watched: its time counts in ``busy_s``, and in the choice of threads.
            kind: of work: passes of one kind take about as long as each other on an idle machine. There are few.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, work, watched, kind)

    def busy_s(self) -> float:
        """How long the longest of the present passes has been running; 0 where there is none."""
        now = time.perf_counter()
        with self._lock:
            return max([0.0, *(now - started for started in self._started.values())])

    def close(self) -> None:
        """End the threads, once what they are at is done."""
        self._executor.shutdown(cancel_futures=True)

    def _timed(self, work: Callable[[], T], watched: bool, kind: str) -> TimedResult[T]:
        started, here = time.perf_counter(), threading.get_ident()
        with self._lock:
            self._started[here] = started if watched else float("inf")
            self._begun += 1
            alone, begun = len(self._started) == 1 and watched, self._begun
            choice = self._choices.setdefault(kind, ThreadChoice(self._threads))
            share = choice.take(started) if alone else max(1, self._threads // len(self._started))
        try:
            if torch.get_num_threads() != share:
                torch.set_num_threads(share)
            passed = TimedResult(work(), started, time.perf_counter())
        finally:
            with self._lock:
                del self._started[here]
        with self._lock:
            if alone and begun == self._begun:
                choice.tell(share, passed.seconds, passed.ended)
        return passed
