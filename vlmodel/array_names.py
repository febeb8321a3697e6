"""The names of a batch's arrays: ``NAME`` of a single task, ``TASK.NAME`` of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

V = TypeVar("V")


def stays_on_host(name: str) -> bool:
    """Whether the model takes the array ``name`` of a batch as Python numbers (``tolist``): it decides shapes, and
    reading a tensor would wait for the device.
    """
    return name.rpartition(".")[2] == "distinct_groups_G3"


def select_task_arrays(arrays: Mapping[str, V], task: str) -> dict[str, V]:
    """The arrays of a batch for ``task``, by their plain names. A single task is called "" and has no prefix."""
    if not task:
        return {name: value for name, value in arrays.items() if "." not in name}
    prefix = f"{task}."
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def prefix_array_names(task: str, arrays: Mapping[str, V]) -> Iterator[tuple[str, V]]:
    """Each array under its name in the batch: the inverse of ``select_task_arrays``."""
    prefix = f"{task}." if task else ""
    for name, value in arrays.items():
        yield prefix + name, value
