"""The threads that run the forward passes of all tasks, and what they are at."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Passed(Generic[T]):
    """What a pass gave, and when it started and ended (``time.perf_counter``, in seconds)."""

    result: T
    started: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.started


class ModelThreads:
    """Passes, a few at a time, that share the cores.

    The threads of one pass wait for each other after every operation, and so for whatever else runs on their cores: the
    proxy, the decoders, Ray's own processes. Passes of one thread each wait for nobody (2 cores, 8 and 32 callers: 17
    and 19 requests/s by two passes side by side, 12 and 11 by one with two threads). So passes side by side share the
    cores, and one that is alone leaves one of them to the rest.

    Args:
        passes: most at one time. On a GPU one, as several would fight for its memory.
        threads: of torch, for all of them. The number of OpenMP threads belongs to the thread that calls, and Ray's
            OMP_NUM_THREADS would make it one.
    """

    def __init__(self, passes: int, threads: int) -> None:
        self._executor = ThreadPoolExecutor(passes, "model")
        self._threads = threads
        self._started: dict[int, float] = {}
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], T], *, watched: bool = True) -> Passed[T]:
        """Do ``work`` when a thread is free. One that is cancelled before its turn is never done.

        Args:
            watched: its time counts in ``busy_s``.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, work, watched)

    def busy_s(self) -> float:
        """How long the longest of the present passes has been running; 0 where there is none."""
        now = time.perf_counter()
        with self._lock:
            return max([0.0, *(now - started for started in self._started.values())])

    def close(self) -> None:
        """End the threads, once what they are at is done."""
        self._executor.shutdown(cancel_futures=True)

    def _timed(self, work: Callable[[], T], watched: bool) -> Passed[T]:
        started, here = time.perf_counter(), threading.get_ident()
        with self._lock:
            self._started[here] = started if watched else float("inf")
            running = len(self._started)
            share = max(1, self._threads // running if running > 1 else self._threads - 1)
        try:
            if torch.get_num_threads() != share:
                torch.set_num_threads(share)
            return Passed(work(), started, time.perf_counter())
        finally:
            with self._lock:
                del self._started[here]
