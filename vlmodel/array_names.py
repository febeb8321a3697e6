"""Names the arrays of a batch: ``NAME`` if there is a single task, ``TASK.NAME`` if there are several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

V = TypeVar("V")


def stays_on_host(name: str) -> bool:
    """Whether the array ``name`` of a batch stays in host memory as Python numbers (``tolist``). The model takes the
    shapes of its tensors from these numbers, and reading them from a tensor would wait for the device.
    """
    return name.rpartition(".")[2] == "distinct_groups_G3"


def select_task_arrays(arrays: Mapping[str, V], task: str) -> dict[str, V]:
    """Select the arrays of ``task`` from a batch and remove the task's prefix from their names. A single task is called
    "" and has no prefix.
    """
    if not task:
        return {name: value for name, value in arrays.items() if "." not in name}
    prefix = f"{task}."
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def prefix_array_names(task: str, arrays: Mapping[str, V]) -> Iterator[tuple[str, V]]:
    """Add the prefix of ``task`` to the names of its arrays, as a batch names them: the inverse of
    ``select_task_arrays``.
    """
    prefix = f"{task}." if task else ""
    for name, value in arrays.items():
        yield prefix + name, value
