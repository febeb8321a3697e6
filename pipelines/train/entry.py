"""The function that Ray Train calls, in a module of its own: Ray's controller imports it too, and needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray


def train_loop_per_worker(arguments: Mapping[str, Any]) -> None:
    """Run a training worker on the ``RunSpec`` that ``arguments["spec"]`` refers to."""
    from ray.train.v2._internal.execution import context

    from pipelines.train.worker import train_worker

    # Ray names this logger after its file, not its module, so LoggingConfig's level does not apply to it. Its errors
    # are raised besides, and told in one line.
    context.logger.setLevel(logging.CRITICAL)
    train_worker(ray.get(arguments["spec"]))
