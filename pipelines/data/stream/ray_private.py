"""Collects all uses of Ray Data's private modules and names; a new version of Ray must be checked here."""

from __future__ import annotations

from typing import Any

from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator


def pass_arguments_by_value() -> None:
    """Let Ray Data give the actors of a pool their small constructor arguments by value, in this process.

    By reference, as it does otherwise, an actor cannot be restarted after the node that holds them was lost, and Ray
    prints an error about it for each pool (ray issue 53727).
    """
    operator: Any = ActorPoolMapOperator
    operator._map_transformer_ref = property(lambda self: self._map_transformer)
    operator._data_context_ref = property(lambda self: self.data_context)
