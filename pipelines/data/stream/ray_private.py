"""Collects all uses of Ray Data's private modules and names; a new version of Ray must be checked here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator


def pass_arguments_by_value() -> None:
    """Let Ray Data give the actors of a pool their small constructor arguments by value, in this process.

    By reference, as it does otherwise, an actor cannot be restarted after the node that holds them was lost, and Ray
    prints an error about it for each pool (ray issue 53727).
    """
    operator: Any = ActorPoolMapOperator
    operator._map_transformer_ref = property(lambda self: self._map_transformer)
    operator._data_context_ref = property(lambda self: self.data_context)


@contextmanager
def stored_in_object_store(value: object) -> Iterator[bytes]:
    """Store a large value for the actors of a pool while the block runs, and yield what they open by ``load_stored``.

    A reference among the arguments of their constructors would make Ray print the same error about each pool. As bytes
    it is none that Ray sees; Ray then keeps the value until it is told that nobody needs it.
    """
    reference = ray.put(value)
    try:
        yield ray.cloudpickle.dumps(reference)
    finally:
        worker: Any = ray._private.worker.global_worker
        worker.core_worker.remove_object_ref_reference(reference)


def load_stored(reference: bytes) -> Any:
    """Load in an actor the value of ``stored_in_object_store``."""
    return ray.get(ray.cloudpickle.loads(reference))
