"""Images of several batches read and decoded at a time: by threads of this process, or by processes beside it.

Decoders let go of Python's lock, but what surrounds them holds it: past a handful of threads they wait for each other
and for whoever takes the batches. Processes do not. They hand pixels over in shared memory, as those of torch's
DataLoader do, which takes no work that comes as it is made.
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
from pipelines.data.stream.loader import Batches, origin


class DecodingStoppedError(RuntimeError):
    """A process that decodes images is gone."""


class ImagePool:
    """Makes the images of batches, in the background.

    Args:
        batches: whose images.
        threads: of this process.
        processes: beside it; 0 leaves all to the threads, which else have the work until the processes are up.
    """

    def __init__(self, batches: Batches, threads: int, processes: int = 0) -> None:
        self._batches = batches
        self._threads = ThreadPoolExecutor(threads, "images")
        self._processes = _started(processes) if processes else None
        self.size = max(threads, processes)

    def submit(self, rows: Arrays) -> Callable[[], Arrays]:
        """Begin with the images of a batch, given all the rest of it.

        Returns:
            a function that waits for them. It raises what reading and decoding raise, and ``DecodingStoppedError``.
        """
        if self._processes is None or not self._processes.ready:
            return self._threads.submit(self._batches.images, rows).result
        return self._processes.submit(self._batches, origin(self._batches, rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The processes stay for the next stream: they take seconds to start, and hold what they have opened.
        self._threads.shutdown(cancel_futures=True)


class _Processes:
    """Processes that this one starts once, and that end with it."""

    def __init__(self, number: int) -> None:
        # Not forked from here, where threads of Ray and of CUDA may hold locks that a copy would wait for.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._executor = ProcessPoolExecutor(number, context, initializer=_begin)
        self._first = [self._executor.submit(os.getpid) for _ in range(number)]

    @property
    def ready(self) -> bool:
        """Whether one is up; the others are about to be."""
        return any(future.done() for future in self._first)

    def submit(self, batches: Batches, rows: Arrays) -> Callable[[], Arrays]:
        try:
            future = self._executor.submit(_images, batches, rows)
        except BrokenProcessPool as error:
            raise _stopped() from error
        return lambda: _result(future)


# One pool a process, whoever streams: training and validation take turns.
_started = lru_cache(maxsize=1)(_Processes)


def _result(future: Future[dict[str, Tensor]]) -> Arrays:
    try:
        return {name: tensor.numpy() for name, tensor in future.result().items()}
    except BrokenProcessPool as error:
        raise _stopped() from error


def _stopped() -> DecodingStoppedError:
    _started.cache_clear()
    return DecodingStoppedError(
        "a process that decodes images ended, most likely for want of memory: lower stream.processes, or set it to 0 "
        "and leave the images to stream.threads"
    )


def _begin() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed worker of a training leaves no processes that wait for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _images(batches: Batches, rows: Arrays) -> dict[str, Tensor]:
    # Tensors: torch hands them over in shared memory, where arrays would go through a pipe.
    return {name: torch.from_numpy(array) for name, array in batches.images(rows).items()}
