"""A pool that reads and decodes the images of several batches at a time, in threads of this process or in other
processes.

Decoders release Python's lock, but the code around them holds it: more than a handful of threads wait for each other
and for the consumer. Processes do not, and hand pixels over in shared memory, as torch's DataLoader does; that one
takes no work that is submitted batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from pipelines.data.stream.dataset import Arrays
from pipelines.data.stream.loader import BatchLoader, arrays_for_loading_inputs

if TYPE_CHECKING:
    from pipelines.data.stream.decoding_processes import DecodingProcesses


_MOST_WAITING_THREADS = 4
"""Threads that work until processes have started."""


class ImagePool:
    """Loads the images of batches in the background.

    Args:
        batches: whose images.
        workers: how many threads or processes there are.
        in_processes: leaves the work to processes; threads do it until one has started.
    """

    def __init__(self, batches: BatchLoader, workers: int, *, in_processes: bool = False) -> None:
        self._batches = batches
        self._threads = ThreadPoolExecutor(min(workers, _MOST_WAITING_THREADS) if in_processes else workers, "images")
        self._processes = _decoding_processes(workers) if in_processes else None
        self.size = workers

    def submit(self, rows: Arrays) -> Callable[[], Arrays]:
        """Start loading the images of a batch, given the rest of the batch.

        Returns:
            a function that waits for them. It raises what reading and decoding raise, and ``DecodingStoppedError``.
        """
        if self._processes is None or not self._processes.is_ready:
            return self._threads.submit(self._batches.load_inputs_of_rows, rows).result
        return self._processes.submit(self._batches, arrays_for_loading_inputs(self._batches, rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The processes stay for the next stream: they take seconds to start, and keep what they have opened.
        self._threads.shutdown(cancel_futures=True)


def _decoding_processes(number: int) -> DecodingProcesses:
    # Not imported above: it needs torch, and the tasks that make texts import this file.
    from pipelines.data.stream.decoding_processes import decoding_processes

    return decoding_processes(number)
