"""The stream: batches in order, made ahead of the consumer on any node of the cluster, with bounded memory.

Ray Data sees rows that are batch numbers. A task makes a few consecutive batches and yields each as one row of raw
arrays (wire.py); with ``preserve_order`` the rows arrive in the order of their numbers wherever they were made. So
mid-epoch resume, which Ray Data does not have, is to start from another number.

Tasks make the texts of a batch; its images are read and decoded by threads of the consumer's process. They would have
to come to this node anyway, and as files they are a fraction of their pixels; decoders let go of Python's lock; and the
pixels need not be copied into and out of the object store. Where a node's cores cannot keep up with its GPUs,
``stream.threads=0`` has the tasks make the images too, on all nodes; where it has many, ``stream.processes``
(image_pool.py) uses more of them than threads can.

A stream is a chain of small datasets, "spans", of which the next is made while this one is consumed. One dataset for
all would be simpler, but its executor lives in the consumer's process and, whenever finished batches wait to be taken,
polls them without a pause: beside a training step it took as much processor time as the step itself. A span is small
enough to be taken whole, and then its executor is gone.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Literal, Self

import pyarrow as pa
import ray
from pydantic import Field, model_validator
from ray.data import DataContext, Dataset, TaskPoolStrategy

from pipelines.data.stream.dataset import Arrays
from pipelines.data.stream.image_pool import ImagePool
from pipelines.data.stream.loader import Batches
from pipelines.data.stream.pixel_cache import PixelCacheConfig
from pipelines.data.stream.wire import pack, unpack
from vlmodel.config import Section


class StreamConfig(Section):
    """How batches are made ahead of the consumer."""

    threads: int = Field(2, ge=0)
    """Threads of each consumer that read and decode images; 0 leaves that to the tasks."""
    processes: int = Field(0, ge=0)
    """Processes beside each consumer that do it in place of the threads, from some seconds after their start on. For
    nodes with many cores, where threads wait for Python's lock; each takes some 300 MB and its part of an index."""
    decoder: Literal["cpu", "gpu"] = "cpu"
    """"gpu" has the GPU of each training worker decode JPEGs (nvJPEG), and keeps no pixels. It takes several cores'
    work for a little of the GPU's time; what it cannot decode, and all where there is none, the CPU does. Validation
    always sees what the CPU decodes, as a service does."""
    tasks: int = Field(1, ge=1)
    """Ray tasks that make batches at one time, for each consumer."""
    cpus_per_task: float = Field(0.5, gt=0)
    """CPUs that each reserves."""
    batches_per_task: int = Field(16, ge=1)
    """Consecutive batches that one task makes: fewer share the work more evenly, more pay for the task's start."""
    memory_mb: int = Field(256, ge=1)
    """Memory for batches that are made ahead, for each consumer."""
    cache: PixelCacheConfig = PixelCacheConfig()

    @model_validator(mode="after")
    def _who_decodes(self) -> Self:
        if self.decoder == "gpu" and not self.threads:
            raise ValueError("decoder = 'gpu' with threads = 0: tasks have no GPU; set threads to 1 or more")
        if self.processes and (not self.threads or self.decoder == "gpu"):
            raise ValueError(
                f"processes = {self.processes} with threads = {self.threads}, decoder = {self.decoder!r}: processes "
                "take the work of threads that decode on the CPU; set threads to 1 or more and decoder to 'cpu', or "
                "processes to 0"
            )
        if self.decoder == "gpu" and self.cache.keep == "always":
            raise ValueError(
                "decoder = 'gpu' with cache.keep = 'always': set one of them, as kept pixels are the CPU's"
            )
        return self


def stream(batches: Batches, config: StreamConfig, *, start: int = 0) -> Iterator[Arrays]:
    """``batches[start]``, ``batches[start + 1]``, ... to the end.

    Args:
        batches: small and picklable (TrainingParts, EvaluationBatches).

    Yields:
        arrays of which some are read-only views of the object store's memory, valid while they are held.
    """
    make = batches.rows if config.threads else batches.__getitem__
    if config.threads:  # texts are small and quickly made: what a span costs can be spread over more of them
        config = config.model_copy(update={"batches_per_task": 2 * config.batches_per_task})
    with closing(_Chunks(make, config, start, len(batches))) as made:
        if config.threads:
            yield from _with_images(batches, made, config)
        else:
            yield from made


def _with_images(batches: Batches, made: _Chunks, config: StreamConfig) -> Iterator[Arrays]:
    ahead: deque[tuple[Arrays, Callable[[], Arrays]]] = deque()
    with ImagePool(batches, config.threads, config.processes) as pool:
        most = room = 2 * pool.size
        while True:
            # Rows that are late hold up no images that are there.
            while not ahead or (len(ahead) < room and made.ready):
                if (rows := next(made, None)) is None:
                    break
                ahead.append((rows, pool.submit(rows)))
            if not ahead:
                return
            rows, take = ahead.popleft()
            images = take()
            room = max(1, min(most, (config.memory_mb << 20) // max(1, _nbytes(images))))
            yield rows | images


class _Chunks(Iterator[Arrays]):
    """Batches ``start`` to ``stop`` as ``make`` makes them, in a chain of spans."""

    def __init__(self, make: Callable[[int], Arrays], config: StreamConfig, start: int, stop: int) -> None:
        self._make, self._config, self._stop = make, config, stop
        self._size = config.tasks * config.batches_per_task
        self._spans: deque[_Span] = deque()
        if start < stop:
            self._begin(start, self._size)

    @property
    def ready(self) -> bool:
        """Whether the next batch is there, or the end is."""
        return not self._spans or self._spans[0].ready

    def __next__(self) -> Arrays:
        if not self._spans:
            raise StopIteration
        here = self._spans[0]
        arrays = here.take()
        if len(self._spans) == 1 and here.stop < self._stop and 2 * here.left <= here.stop - here.start:
            self._begin(here.stop, (self._config.memory_mb << 20) // (2 * _nbytes(arrays)))
        if not here.left:
            here.cancel()
            self._spans.popleft()
        return arrays

    def close(self) -> None:
        """Make no further batches."""
        for span in self._spans:
            span.cancel()

    def _begin(self, start: int, room: int) -> None:
        stop = min(start + max(1, min(self._size, room)), self._stop)
        dataset = packed(self._make, self._config, start, stop)
        self._spans.append(_Span(dataset, start, stop, quick=self._config.threads > 0))


class _Span:
    """Batches ``start`` to ``stop``, being made from the moment this is created.

    Args:
        quick: they are soon made, and so made to the end where no more are wanted. Ray kills the process of a task that
            is cut short, and whoever comes next waits seconds for another to start.
    """

    def __init__(self, dataset: Dataset, start: int, stop: int, *, quick: bool) -> None:
        self.start, self.stop, self.left, self._quick = start, stop, stop - start, quick
        self._made: queue.SimpleQueue[pa.Table | BaseException] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._collect, args=(dataset,), daemon=True, name=f"span-{start}")
        self._thread.start()

    @property
    def ready(self) -> bool:
        return not self._made.empty()

    def take(self) -> Arrays:
        """The next batch, once it is made."""
        made = self._made.get()
        if isinstance(made, BaseException):
            self.left = 0
            raise made
        self.left -= 1
        return unpack(made)

    def cancel(self) -> None:
        """Make no further batches. Does nothing where all are made."""
        self._cancelled.set()
        self._thread.join()

    def _collect(self, dataset: Dataset) -> None:
        taken = 0
        try:
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                if self._cancelled.is_set() and not self._quick:
                    return
                assert isinstance(block, pa.Table)
                taken += 1
                self._made.put(block)
            if taken != self.stop - self.start:
                raise RuntimeError(f"{taken} batches were made where {self.stop - self.start} were due")
        except BaseException as error:  # it is the consumer's to raise
            self._made.put(error)


def packed(
    make: Callable[[int], Arrays], config: StreamConfig, start: int, stop: int, *, row_is_block: bool = True
) -> Dataset:
    """Batches ``start`` to ``stop`` as a lazy Ray dataset of packed rows (wire.py), in order.

    Args:
        make: makes a batch from its number alone, in any process.
        row_is_block: each batch is delivered as soon as it is made. False leaves the size of blocks to Ray Data, here
            and in all that is built upon it; rows that are answers would become as many blocks.
    """
    size = config.batches_per_task
    tasks = -(-(stop - start) // size)

    def make_all(block: pa.Table) -> Iterator[pa.Table]:
        # A task has its cores for itself no more than the tokenizers' threads would; these only wait for each other.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for task in block["id"].to_pylist():
            for number in range(start + task * size, min(start + (task + 1) * size, stop)):
                yield pack(make(number))

    with DataContext.current(_context(row_is_block)):
        return ray.data.range(tasks, override_num_blocks=tasks).map_batches(
            make_all,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=config.cpus_per_task,
            compute=TaskPoolStrategy(size=min(config.tasks, tasks)),
        )


def _nbytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _context(row_is_block: bool) -> DataContext:
    context: DataContext = DataContext.get_current().copy()
    if row_is_block:
        context.target_max_block_size = 1
        context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    return context
