"""Worker processes that decode images for a stream and return tensors in shared memory."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache

import torch
from torch import Tensor

from pipelines.data.stream.dataset import Arrays
from pipelines.data.stream.loader import BatchLoader


class DecodingStoppedError(RuntimeError):
    """A process that decodes images ended unexpectedly."""


class DecodingProcesses:
    """A pool of decoding processes, which this process starts once and which end with it."""

    def __init__(self, number: int) -> None:
        # Not forked from this process, in which threads of Ray and CUDA may hold locks.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._executor = ProcessPoolExecutor(number, context, initializer=_initialize_worker)
        self._first = [self._executor.submit(os.getpid) for _ in range(number)]

    @property
    def is_ready(self) -> bool:
        """Whether at least one process has started; the others are about to."""
        return any(future.done() for future in self._first)

    def submit(self, batches: BatchLoader, rows: Arrays) -> Callable[[], Arrays]:
        try:
            future = self._executor.submit(_load_images, batches, rows)
        except BrokenProcessPool as error:
            raise _decoding_stopped_error() from error
        return lambda: _wait_for_images(future)


# One pool for all streams of a process: training and validation take turns.
decoding_processes = lru_cache(maxsize=1)(DecodingProcesses)


def _wait_for_images(future: Future[dict[str, Tensor]]) -> Arrays:
    try:
        return {name: tensor.numpy() for name, tensor in future.result().items()}
    except BrokenProcessPool as error:
        raise _decoding_stopped_error() from error


def _decoding_stopped_error() -> DecodingStoppedError:
    decoding_processes.cache_clear()
    return DecodingStoppedError(
        "a process that decodes images ended, most likely for lack of memory: lower stream.workers, or set "
        "stream.decoding=threads"
    )


def _initialize_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Let this process end when its parent does, so that a killed training worker leaves no processes behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _load_images(batches: BatchLoader, rows: Arrays) -> dict[str, Tensor]:
    # torch hands tensors over in shared memory, where arrays would go through a pipe.
    return {name: torch.from_numpy(array) for name, array in batches.load_inputs_of_rows(rows).items()}
