"""Runs functions in other processes of the cluster, and waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import ray
from ray import ObjectRef

T = TypeVar("T")


def run_remotely(function: Callable[..., Any], *arguments: Any) -> ObjectRef[Any]:
    """Call ``function`` in another process. Ray reuses that process, with its imports, for the next call."""
    # It reserves no CPU: it waits for workers, which reserve their own. DEFAULT schedules it outside the caller's
    # placement group: that of a Ray Tune trial has no free resources.
    task: Any = ray.remote(_call_remote)
    task = task.options(num_cpus=0, max_retries=0, name="training", scheduling_strategy="DEFAULT")
    return cast("ObjectRef[Any]", task.remote(function, *arguments))


def run_parallel(function: Callable[[T], Any], items: Sequence[T], at_once: int) -> Iterator[tuple[T, Any]]:
    """Call a function for each item in another process, ``at_once`` at a time, and yield ``(item, result)`` in the
    order in which they finish.

    Yields:
        the exception in place of a result, if the process died.
    """
    if at_once == 1:
        for item in items:
            yield item, function(item)
        return
    waiting = list(items)
    running: dict[ObjectRef[Any], T] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            item = waiting.pop(0)
            running[run_remotely(function, item)] = item
        (ready,), _ = ray.wait(list(running), num_returns=1)
        item = running.pop(ready)
        try:
            yield item, ray.get(ready)
        except ray.exceptions.RayError as error:
            yield item, error


def _call_remote(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
