"""An actor between a training, which reports each epoch and waits, and a search, which lets the training continue or
stops it.

A training that is stopped this way ends like any other: its checkpoint is complete, its tracked run is closed and its
resources are freed. Killing it, as Ray Tune does by default, would leave its workers' placement group and its streams'
resource requests behind.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import ray
from ray.actor import ActorHandle


class TrialController:
    """Holds the newest report of a training, and the search's decision about it."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._allowed_epoch, self._reported_epoch, self._score = 0, 0, 0.0
        self._stopped = False

    async def report_epoch(self, epoch: int, score: float) -> bool:
        """Called by the training after ``epoch``: wait for the search's decision. Returns whether to continue."""
        async with self._changed:
            self._reported_epoch, self._score = epoch, score
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._stopped or self._allowed_epoch >= epoch)
            return not self._stopped

    async def wait_for_next_epoch(self, epoch: int) -> tuple[int, float]:
        """Called by the search: let the training continue after ``epoch``, and wait until it reports a later epoch.

        Returns:
            that epoch, and its score.
        """
        async with self._changed:
            self._allowed_epoch = epoch
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._reported_epoch > epoch)
            return self._reported_epoch, self._score

    async def stop(self) -> None:
        """Called by the search: end the training when it reports its next epoch."""
        async with self._changed:
            self._stopped = True
            self._changed.notify_all()


def create_trial_controller() -> ActorHandle[Any]:
    """Start the controller of one training, an actor that ends when its handle is dropped."""
    return cast("ActorHandle[Any]", ray.remote(num_cpus=0, scheduling_strategy="DEFAULT")(TrialController).remote())
