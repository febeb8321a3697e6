"""Runs a function on shards by Ray Data, one block for each shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MAX_BLOCKS = 10_000
"""Blocks, and so tasks, of a pass at most."""


def map_shards(items: Sequence[Any], work: Any, **remote: Any) -> Iterator[Mapping[str, Any]]:
    """Apply ``work`` to each item in a Ray task and yield the resulting rows in the order in which they are done.

    Args:
        items: rows, or values that become rows ``{"item": value}``.
        work: a function of a row, or a class whose instances are.
        remote: arguments of ``Dataset.map``, such as ``compute`` and ``num_cpus``.
    """
    import ray

    if not items:
        return
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        done = ray.data.from_items(list(items), override_num_blocks=min(len(items), _MAX_BLOCKS)).map(work, **remote)
    yield from done.iter_rows()
