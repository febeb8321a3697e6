"""The stream: batches made by Ray Data on any node of the cluster, delivered in order, with bounded memory.

Ray Data sees rows that are batch numbers. A task makes a few consecutive batches and yields each as one row of raw
arrays (wire.py); with ``preserve_order`` the rows arrive in the order of their numbers wherever they were made. So
mid-epoch resume, which Ray Data does not have, is to start from another number.

A stream is a chain of small datasets, "spans", of which the next is made while this one is consumed. One dataset for
all would be simpler, but its executor lives in the consumer's process and, whenever finished batches wait to be taken,
polls them without a pause: beside a training step it took as much processor time as the step itself. A span is small
enough to be taken whole, and then its executor is gone.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import pyarrow as pa
import ray
from pydantic import Field
from ray.data import DataContext, Dataset, TaskPoolStrategy

from pipelines.data.loader import Arrays
from pipelines.data.wire import pack, unpack
from vlmodel.config import Section


class StreamConfig(Section):
    """How batches are made ahead of the consumer."""

    tasks: int = Field(1, ge=1)
    """Ray tasks that make batches at one time, for each consumer."""
    cpus_per_task: float = Field(0.5, gt=0)
    """CPUs that each reserves."""
    batches_per_task: int = Field(16, ge=1)
    """Consecutive batches that one task makes: fewer share the work more evenly, more pay for the task's start."""
    memory_mb: int = Field(256, ge=1)
    """Object-store memory for batches that are made ahead, for each consumer."""


def stream(batches: Sequence[Arrays], config: StreamConfig, *, start: int = 0) -> Iterator[Arrays]:
    """``batches[start]``, ``batches[start + 1]``, ... to the end, made by Ray Data.

    Args:
        batches: makes batch ``i`` from ``i`` alone; small and picklable (TrainingParts, EvaluationBatches).

    Yields:
        read-only views of the object store's memory, valid while they are held.
    """
    stop, size = len(batches), config.tasks * config.batches_per_task
    coming = _Span(batches, config, start, min(start + size, stop)) if start < stop else None
    try:
        while coming is not None:
            here, coming = coming, None
            for number, arrays in enumerate(here, here.start):
                if coming is None and here.stop < stop and 2 * (number + 1 - here.start) >= here.stop - here.start:
                    room = (config.memory_mb << 20) // (2 * sum(array.nbytes for array in arrays.values()))
                    coming = _Span(batches, config, here.stop, min(here.stop + max(1, min(size, room)), stop))
                yield arrays
    finally:
        if coming is not None:
            coming.cancel()


class _Span:
    """Batches ``start`` to ``stop``, being made from the moment this is created."""

    def __init__(self, batches: Sequence[Arrays], config: StreamConfig, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self._made: queue.SimpleQueue[pa.Table | BaseException] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        dataset = packed(batches, config, start, stop)
        self._thread = threading.Thread(target=self._take, args=(dataset,), daemon=True, name=f"span-{start}")
        self._thread.start()

    def __iter__(self) -> Iterator[Arrays]:
        try:
            for _ in range(self.start, self.stop):
                made = self._made.get()
                if isinstance(made, BaseException):
                    raise made
                yield unpack(made)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Make no further batches. Does nothing where all are made."""
        self._cancelled.set()
        self._thread.join()

    def _take(self, dataset: Dataset) -> None:
        taken = 0
        try:
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                if self._cancelled.is_set():
                    return
                assert isinstance(block, pa.Table)
                taken += 1
                self._made.put(block)
            if taken != self.stop - self.start:
                raise RuntimeError(f"{taken} batches were made where {self.stop - self.start} were due")
        except BaseException as error:  # it is the consumer's to raise
            self._made.put(error)


def packed(
    batches: Sequence[Arrays], config: StreamConfig, start: int, stop: int, *, row_is_block: bool = True
) -> Dataset:
    """``batches[start:stop]`` as a lazy Ray dataset of packed rows (wire.py), in order.

    Args:
        row_is_block: each batch is delivered as soon as it is made. False leaves the size of blocks to Ray Data, here
            and in all that is built upon it; rows that are answers would become as many blocks.
    """
    size = config.batches_per_task
    tasks = -(-(stop - start) // size)

    def make(block: pa.Table) -> Iterator[pa.Table]:
        for task in block["id"].to_pylist():
            for number in range(start + task * size, min(start + (task + 1) * size, stop)):
                yield pack(batches[number])

    with DataContext.current(_context(row_is_block)):
        return ray.data.range(tasks, override_num_blocks=tasks).map_batches(
            make,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=config.cpus_per_task,
            compute=TaskPoolStrategy(size=min(config.tasks, tasks)),
        )


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
