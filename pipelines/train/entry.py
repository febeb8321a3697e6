"""The function that Ray Train calls, in a module of its own: Ray's controller imports it too, and needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray


def enter(arguments: Mapping[str, Any]) -> None:
    """Run a worker on the ``RunSpec`` that ``arguments["spec"]`` refers to."""
    from pipelines.train.worker import train_worker

    # LoggingConfig's level filters the handlers of Ray Train alone, and what passes to those of Ray is still printed.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    train_worker(ray.get(arguments["spec"]))
