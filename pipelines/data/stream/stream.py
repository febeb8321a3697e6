"""The stream: batches in order, made ahead of the consumer on any node of the cluster, with bounded memory.

Ray Data sees rows that are batch numbers. A task makes consecutive batches and yields each as one row of raw arrays
(wire.py); with ``preserve_order`` the rows arrive in the order of their numbers, wherever they were made. So resuming
in the middle of an epoch, which Ray Data cannot do, is starting from another number.

Tasks make the texts of a batch; its images are read and decoded by threads of the consumer's process. Images have to
come to this node anyway, and encoded they are a fraction of their pixels; decoders release Python's lock; and pixels
need no copies through the object store. Where a node's cores cannot keep up with its GPUs, ``stream.threads=0`` has
tasks on all nodes decode too; where it has many cores, ``stream.processes`` (image_pool.py) uses more of them than
threads can.

A stream is a chain of small Ray datasets, "chunks" of batches; the next is made while this one is consumed. One dataset
for all would be simpler, but its executor runs in the consumer's process and, while finished batches wait to be taken,
polls without a pause: beside a training step it took as much CPU time as the step. A chunk is small enough to be
received whole, and then its executor ends.
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
    """Processes beside each consumer that decode in place of the threads, from some seconds after their start on. For
    nodes with many cores, where threads wait for Python's lock; each takes some 300 MB and its part of an index."""
    decoder: Literal["cpu", "gpu"] = "cpu"
    """"gpu" decodes JPEGs on the GPU of each training worker (nvJPEG), without the pixel cache: several cores' work for
    a little of the GPU's time. The CPU decodes what the GPU cannot, and all where there is none. Validation always uses
    the CPU, as does serving."""
    tasks: int = Field(1, ge=1)
    """Ray tasks that make batches at one time, for each consumer."""
    cpus_per_task: float = Field(0.5, gt=0)
    """CPUs that each reserves."""
    batches_per_task: int = Field(16, ge=1)
    """Consecutive batches that one task makes: fewer share the work more evenly, more save starts of tasks."""
    memory_mb: int = Field(256, ge=1)
    """Memory for prefetched batches, for each consumer."""
    cache: PixelCacheConfig = PixelCacheConfig()

    @model_validator(mode="after")
    def _compatible_decoding(self) -> Self:
        if self.decoder == "gpu" and not self.threads:
            raise ValueError("decoder = 'gpu' with threads = 0: tasks have no GPU; set threads to 1 or more")
        if self.processes and (not self.threads or self.decoder == "gpu"):
            raise ValueError(
                f"processes = {self.processes} with threads = {self.threads}, decoder = {self.decoder!r}: processes "
                "replace threads that decode on the CPU; set threads to 1 or more and decoder to 'cpu', or processes "
                "to 0"
            )
        if self.decoder == "gpu" and self.cache.keep == "always":
            raise ValueError("decoder = 'gpu' with cache.keep = 'always': cached pixels are the CPU's; set one of them")
        return self


def stream(batches: Batches, config: StreamConfig, *, start: int = 0) -> Iterator[Arrays]:
    """``batches[start]``, ``batches[start + 1]``, ... to the end.

    Args:
        batches: small and picklable (MicroBatches, EvaluationBatches).

    Yields:
        arrays, some of which are read-only views of the object store's memory, valid while they are referenced.
    """
    make = batches.rows if config.threads else batches.__getitem__
    if config.threads:  # texts are small and quick to make, so a chunk can hold more of them
        config = config.model_copy(update={"batches_per_task": 2 * config.batches_per_task})
    with closing(_ChunkChain(make, config, start, len(batches))) as chunks:
        if config.threads:
            yield from _with_images(batches, chunks, config)
        else:
            yield from chunks


def _with_images(batches: Batches, chunks: _ChunkChain, config: StreamConfig) -> Iterator[Arrays]:
    prefetched: deque[tuple[Arrays, Callable[[], Arrays]]] = deque()
    with ImagePool(batches, config.threads, config.processes) as pool:
        limit = 2 * pool.size
        while True:
            # Waits for rows only where no batch is prefetched: late rows must not delay images that are ready.
            while not prefetched or (len(prefetched) < limit and chunks.is_ready):
                if (rows := next(chunks, None)) is None:
                    break
                prefetched.append((rows, pool.submit(rows)))
            if not prefetched:
                return
            rows, wait_for_images = prefetched.popleft()
            images = wait_for_images()
            limit = max(1, min(2 * pool.size, (config.memory_mb << 20) // max(1, _batch_bytes(images))))
            yield rows | images


class _ChunkChain(Iterator[Arrays]):
    """Batches ``start`` to ``stop``, as ``make`` makes them, in a chain of chunks."""

    def __init__(self, make: Callable[[int], Arrays], config: StreamConfig, start: int, stop: int) -> None:
        self._make, self._config, self._stop = make, config, stop
        self._size = config.tasks * config.batches_per_task
        self._chunks: deque[_Chunk] = deque()
        if start < stop:
            self._start_chunk(start, self._size)

    @property
    def is_ready(self) -> bool:
        """Whether ``next`` returns, or ends, without waiting."""
        return not self._chunks or self._chunks[0].is_ready

    def __next__(self) -> Arrays:
        if not self._chunks:
            raise StopIteration
        chunk = self._chunks[0]
        arrays = chunk.take()
        if len(self._chunks) == 1 and chunk.stop < self._stop and 2 * chunk.left <= chunk.stop - chunk.start:
            self._start_chunk(chunk.stop, (self._config.memory_mb << 20) // (2 * _batch_bytes(arrays)))
        if not chunk.left:
            chunk.cancel()
            self._chunks.popleft()
        return arrays

    def close(self) -> None:
        for chunk in self._chunks:
            chunk.cancel()

    def _start_chunk(self, start: int, max_batches: int) -> None:
        stop = min(start + max(1, min(self._size, max_batches)), self._stop)
        dataset = batch_dataset(self._make, self._config, start, stop)
        self._chunks.append(_Chunk(dataset, start, stop, finish=self._config.threads > 0))


class _Chunk:
    """Batches ``start`` to ``stop``, made from the moment this is created.

    Args:
        finish: whether all batches are made even where the chunk is cancelled. Ray kills the process of a task that is
            cut short, and starting another takes seconds; so this is worth it for batches that are made quickly.
    """

    def __init__(self, dataset: Dataset, start: int, stop: int, *, finish: bool) -> None:
        self.start, self.stop, self.left, self._finish = start, stop, stop - start, finish
        self._batches: queue.SimpleQueue[pa.Table | BaseException] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._thread = threading.Thread(
            target=self._collect_batches, args=(dataset,), daemon=True, name=f"chunk-{start}"
        )
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        return not self._batches.empty()

    def take(self) -> Arrays:
        """The next batch, once it is made."""
        batch = self._batches.get()
        if isinstance(batch, BaseException):
            self.left = 0
            raise batch
        self.left -= 1
        return unpack(batch)

    def cancel(self) -> None:
        """Make no further batches, and wait for the thread."""
        self._cancelled.set()
        self._thread.join()

    def _collect_batches(self, dataset: Dataset) -> None:
        count = 0
        try:
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                if self._cancelled.is_set() and not self._finish:
                    return
                assert isinstance(block, pa.Table)
                count += 1
                self._batches.put(block)
            if count != self.stop - self.start:
                raise RuntimeError(f"{count} batches were made where {self.stop - self.start} were due")
        except BaseException as error:  # raised where the batch is taken
            self._batches.put(error)


def batch_dataset(
    make: Callable[[int], Arrays], config: StreamConfig, start: int, stop: int, *, row_is_block: bool = True
) -> Dataset:
    """Batches ``start`` to ``stop`` as a lazy Ray dataset of packed rows (wire.py), in order.

    Args:
        make: makes a batch from its number alone, in any process.
        row_is_block: delivers each batch as soon as it is made. False leaves the size of blocks to Ray Data, here and
            in what is built upon it.
    """
    size = config.batches_per_task
    tasks = -(-(stop - start) // size)

    def make_all(block: pa.Table) -> Iterator[pa.Table]:
        # The tokenizers' threads would compete with each other for the task's share of the cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for task in block["id"].to_pylist():
            for number in range(start + task * size, min(start + (task + 1) * size, stop)):
                yield pack(make(number))

    with DataContext.current(_data_context(row_is_block)):
        return ray.data.range(tasks, override_num_blocks=tasks).map_batches(
            make_all,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=config.cpus_per_task,
            compute=TaskPoolStrategy(size=min(config.tasks, tasks)),
        )


def _batch_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _data_context(row_is_block: bool) -> DataContext:
    context: DataContext = DataContext.get_current().copy()
    if row_is_block:
        context.target_max_block_size = 1
        context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    return context
