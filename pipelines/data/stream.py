"""The stream: batches made by Ray Data on any node of the cluster, delivered in order, with bounded memory.

Ray Data sees rows that are batch numbers. A task makes a few consecutive batches and yields each as one row of raw
arrays (wire.py); with ``preserve_order`` the rows arrive in the order of their numbers wherever they were made. So
mid-epoch resume, which Ray Data does not have, is to start from another number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import ray
from pydantic import Field
from ray.data import DataContext, Dataset, ExecutionResources, TaskPoolStrategy

from pipelines.data.loader import Arrays
from pipelines.data.wire import pack, unpack
from vlmodel.config import Section

# Ray Data keeps state for each task of a dataset; longer streams are chained from datasets of this many.
_TASKS_PER_DATASET = 1024


class StreamConfig(Section):
    """How batches are made ahead of the consumer."""

    tasks: int = Field(1, ge=1)
    """Ray tasks that make batches at one time, for each consumer."""
    cpus_per_task: float = Field(0.5, gt=0)
    """CPUs that each reserves."""
    batches_per_task: int = Field(16, ge=1)
    """Consecutive batches that one task makes: fewer share the work more evenly, more pay for the task's start."""
    prefetch: int = Field(4, ge=0)
    """Batches fetched ahead of the consumer."""
    memory_mb: int = Field(256, ge=1)
    """Object-store memory for batches that wait, for each consumer."""


def stream(batches: Sequence[Arrays], config: StreamConfig, *, start: int = 0) -> Iterator[Arrays]:
    """``batches[start]``, ``batches[start + 1]``, ... to the end, made by Ray Data.

    Args:
        batches: makes batch ``i`` from ``i`` alone; small and picklable (TrainingParts, EvaluationBatches).

    Yields:
        read-only views of the object store's memory, valid while they are held.
    """
    stop = len(batches)
    span = _TASKS_PER_DATASET * config.batches_per_task
    for first in range(start, stop, span):
        yield from _span(batches, config, first, min(first + span, stop))


def _span(batches: Sequence[Arrays], config: StreamConfig, start: int, stop: int) -> Iterator[Arrays]:
    blocks = packed(batches, config, start, stop).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=config.prefetch
    )
    for block in blocks:
        yield unpack(block)


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

    with DataContext.current(_context(config, row_is_block)):
        return ray.data.range(tasks, override_num_blocks=tasks).map_batches(
            make,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=config.cpus_per_task,
            compute=TaskPoolStrategy(size=config.tasks),
        )


def _context(config: StreamConfig, row_is_block: bool) -> DataContext:
    context: DataContext = DataContext.get_current().copy()
    if row_is_block:
        context.target_max_block_size = 1
        context.target_min_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    limits = ExecutionResources(object_store_memory=config.memory_mb << 20)
    context.execution_options.resource_limits = limits
    return context
