"""The function that Ray Train calls, in a module of its own: Ray's controller imports it too, and needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray


def enter(arguments: Mapping[str, Any]) -> None:
    """Run a worker on the ``RunSpec`` that ``arguments["spec"]`` refers to."""
    from pipelines.train.worker import train_worker

    train_worker(ray.get(arguments["spec"]))
