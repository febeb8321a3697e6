"""The one thread that runs the forward passes of all tasks, and what it is at."""

from __future__ import annotations

import asyncio
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


class ModelThread:
    """One thread: passes side by side would fight for the same cores, or for the same GPU's memory.

    Args:
        threads: of torch, for one pass. The number of OpenMP threads belongs to the thread that calls, and Ray's
            OMP_NUM_THREADS would make it one.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(1, "model", initializer=torch.set_num_threads, initargs=(threads,))
        self._started: float | None = None

    async def run(self, work: Callable[[], T], *, watched: bool = True) -> Passed[T]:
        """Do ``work`` when those before it are done. One that is cancelled before its turn is never done.

        Args:
            watched: its time counts in ``busy_s``.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, work, watched)

    def busy_s(self) -> float:
        """How long the present pass has been running; 0 where there is none."""
        started = self._started
        return 0.0 if started is None else time.perf_counter() - started

    def close(self) -> None:
        """End the thread, once what it is at is done."""
        self._executor.shutdown(cancel_futures=True)

    def _timed(self, work: Callable[[], T], watched: bool) -> Passed[T]:
        started = time.perf_counter()
        self._started = started if watched else None
        try:
            return Passed(work(), started, time.perf_counter())
        finally:
            self._started = None
