"""Streams batches in order; they are made ahead of the consumer on any node of the cluster, with bounded memory.

Ray Data sees rows that are batch numbers. A task makes consecutive batches and yields each as one row of raw arrays
(wire.py); with ``preserve_order`` the rows arrive in the order of their numbers, wherever they were made. So resuming
in the middle of an epoch, which Ray Data cannot do, is starting from another number.

Tasks make the texts of a batch; its images are read and decoded on the consumer's node (image_pool.py). Images have to
come to this node anyway, and encoded they are a fraction of their pixels, which need no copies through the object
store. Tasks that decoded too were never faster than threads.

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

import pyarrow as pa
import ray
from ray.data import DataContext, Dataset, TaskPoolStrategy

from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import Arrays
from pipelines.data.stream.image_pool import ImagePool
from pipelines.data.stream.loader import BatchLoader
from pipelines.data.stream.wire import pack_arrays, unpack_arrays

TEXT_BATCHES_PER_TASK = 32
"""Fewer would share the work more evenly, more would save starts of tasks. Texts are small and quick to make."""
_CPUS_PER_TASK = 0.5


def stream_batches(batches: BatchLoader, config: StreamConfig, *, start: int = 0) -> Iterator[Arrays]:
    """Iterate over ``batches[start]``, ``batches[start + 1]``, ... to the end, made ahead of the consumer.

    Args:
        batches: small and picklable (MicroBatches, EvaluationBatches).

    Yields:
        arrays, some of which are read-only views of the object store's memory, valid while they are referenced.
    """
    with (
        closing(_ChunkChain(batches.make_rows, config, start, len(batches))) as chunks,
        ImagePool(batches, config.workers, in_processes=config.decoding == "processes") as pool,
    ):
        yield from _add_images_to_batches(pool, chunks, config)


def _add_images_to_batches(pool: ImagePool, chunks: _ChunkChain, config: StreamConfig) -> Iterator[Arrays]:
    prefetched: deque[tuple[Arrays, Callable[[], Arrays]]] = deque()
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
    """Iterates over batches that are made in chunks; the next chunk starts before the current one is used up."""

    def __init__(self, make: Callable[[int], Arrays], config: StreamConfig, start: int, stop: int) -> None:
        self._make, self._config, self._stop = make, config, stop
        self._size = config.tasks * TEXT_BATCHES_PER_TASK
        self._chunks: deque[_BatchChunk] = deque()
        if start < stop:
            self._start_chunk(start, self._size)

    @property
    def is_ready(self) -> bool:
        """Whether the next batch is ready, or there is none."""
        return not self._chunks or self._chunks[0].is_ready

    def __next__(self) -> Arrays:
        if not self._chunks:
            raise StopIteration
        chunk = self._chunks[0]
        arrays = chunk.next_batch()
        if len(self._chunks) == 1 and chunk.stop < self._stop and 2 * chunk.left <= chunk.stop - chunk.start:
            self._start_chunk(chunk.stop, (self._config.memory_mb << 20) // (2 * _batch_bytes(arrays)))
        if not chunk.left:
            chunk.wait_until_made()
            self._chunks.popleft()
        return arrays

    def close(self) -> None:
        for chunk in self._chunks:
            chunk.wait_until_made()

    def _start_chunk(self, start: int, max_batches: int) -> None:
        stop = min(start + max(1, min(self._size, max_batches)), self._stop)
        dataset = batch_dataset(self._make, self._config.tasks, TEXT_BATCHES_PER_TASK, start, stop)
        self._chunks.append(_BatchChunk(dataset, start, stop))


class _BatchChunk:
    """Consecutive batches that a Ray dataset starts to make as soon as this is created."""

    def __init__(self, dataset: Dataset, start: int, stop: int) -> None:
        self.start, self.stop, self.left = start, stop, stop - start
        self._batches: queue.SimpleQueue[pa.Table | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._collect_batches, args=(dataset,), daemon=True, name=f"chunk-{start}"
        )
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        return not self._batches.empty()

    def next_batch(self) -> Arrays:
        """Return the next batch, waiting until it is made."""
        batch = self._batches.get()
        if isinstance(batch, BaseException):
            self.left = 0
            raise batch
        self.left -= 1
        return unpack_arrays(batch)

    def wait_until_made(self) -> None:
        """Wait until all batches are made, even if nobody takes them: they are made quickly, while cancelling a task
        makes Ray kill its process, and starting another takes seconds.
        """
        self._thread.join()

    def _collect_batches(self, dataset: Dataset) -> None:
        count = 0
        try:
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                assert isinstance(block, pa.Table)
                count += 1
                self._batches.put(block)
            if count != self.stop - self.start:
                raise RuntimeError(f"{count} batches were made where {self.stop - self.start} were due")
        except BaseException as error:  # raised where the batch is taken
            self._batches.put(error)


def batch_dataset(
    make: Callable[[int], Arrays], tasks: int, task_batches: int, start: int, stop: int, *, row_is_block: bool = True
) -> Dataset:
    """Create a lazy Ray dataset of batches ``start`` to ``stop`` in order, each packed as a row (wire.py).

    Args:
        make: makes a batch from its number alone, in any process.
        tasks: Ray tasks that make batches at one time.
        task_batches: consecutive batches that one task makes.
        row_is_block: delivers each batch as soon as it is made. False leaves the size of blocks to Ray Data, here and
            in what is built upon it.
    """
    parts = -(-(stop - start) // task_batches)

    def make_batches(block: pa.Table) -> Iterator[pa.Table]:
        # The tokenizers' threads would compete with each other for the task's share of the cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for part in block["id"].to_pylist():
            for number in range(start + part * task_batches, min(start + (part + 1) * task_batches, stop)):
                yield pack_arrays(make(number))

    with DataContext.current(_make_data_context(row_is_block)):
        return ray.data.range(parts, override_num_blocks=parts).map_batches(
            make_batches,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=_CPUS_PER_TASK,
            compute=TaskPoolStrategy(size=min(tasks, parts)),
        )


def _batch_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _make_data_context(row_is_block: bool) -> DataContext:
    context: DataContext = DataContext.get_current().copy()
    if row_is_block:
        context.target_max_block_size = 1
        context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    return context
