"""A pool that reads and decodes the images of several batches at a time: threads of this process, or other processes.

Decoders release Python's lock, but the code around them holds it: more than a handful of threads wait for each other
and for the consumer. Processes do not, and hand pixels over in shared memory, as torch's DataLoader does; that one
takes no work that is submitted batch by batch.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from pipelines.data.stream.dataset import Arrays
from pipelines.data.stream.loader import BatchLoader, image_inputs


class DecodingStoppedError(RuntimeError):
    """A process that decodes images ended."""


_MOST_WAITING_THREADS = 4
"""Threads that work until processes have started."""


class ImagePool:
    """Makes the images of batches, in the background.

    Args:
        batches: whose images.
        workers: how many threads or processes there are.
        in_processes: leaves the work to processes; threads do it until one has started.
    """

    def __init__(self, batches: BatchLoader, workers: int, *, in_processes: bool = False) -> None:
        self._batches = batches
        self._threads = ThreadPoolExecutor(min(workers, _MOST_WAITING_THREADS) if in_processes else workers, "images")
        self._processes = _process_pool(workers) if in_processes else None
        self.size = workers

    def submit(self, rows: Arrays) -> Callable[[], Arrays]:
        """Start making the images of a batch, given the rest of it.

        Returns:
            a function that waits for them. It raises what reading and decoding raise, and ``DecodingStoppedError``.
        """
        if self._processes is None or not self._processes.is_ready:
            return self._threads.submit(self._batches.images, rows).result
        return self._processes.submit(self._batches, image_inputs(self._batches, rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The processes stay for the next stream: they take seconds to start, and keep what they have opened.
        self._threads.shutdown(cancel_futures=True)


class _DecodingProcesses:
    """Processes that this one starts once, and that end with it."""

    def __init__(self, number: int) -> None:
        # Not forked from this process, in which threads of Ray and CUDA may hold locks.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._executor = ProcessPoolExecutor(number, context, initializer=_initialize_worker)
        self._first = [self._executor.submit(os.getpid) for _ in range(number)]

    @property
    def is_ready(self) -> bool:
        """Whether one has started; the others are about to."""
        return any(future.done() for future in self._first)

    def submit(self, batches: BatchLoader, rows: Arrays) -> Callable[[], Arrays]:
        try:
            future = self._executor.submit(_load_images, batches, rows)
        except BrokenProcessPool as error:
            raise _stopped_error() from error
        return lambda: _images_of_future(future)


# One pool for all streams of a process: training and validation take turns.
_process_pool = lru_cache(maxsize=1)(_DecodingProcesses)


def _images_of_future(future: Future[dict[str, Tensor]]) -> Arrays:
    try:
        return {name: tensor.numpy() for name, tensor in future.result().items()}
    except BrokenProcessPool as error:
        raise _stopped_error() from error


def _stopped_error() -> DecodingStoppedError:
    _process_pool.cache_clear()
    return DecodingStoppedError(
        "a process that decodes images ended, most likely for lack of memory: lower stream.workers, or set "
        "stream.decoding=threads"
    )


def _initialize_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed training worker leaves no processes behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _load_images(batches: BatchLoader, rows: Arrays) -> dict[str, Tensor]:
    # torch hands tensors over in shared memory, where arrays would go through a pipe.
    return {name: torch.from_numpy(array) for name, array in batches.images(rows).items()}
