"""Between a training, which asks at the end of each epoch whether to go on, and a search, which decides.

A training that is ended this way ends like any other: its checkpoint is complete, its record closed, its share of the
cluster free. Killing it, as Ray Tune does by itself, would leave the placement group of its workers and the requests
of its streams behind.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import ray
from ray.actor import ActorHandle


class TrialController:
    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._passed, self._reached, self._score = 0, 0, 0.0
        self._stopped = False

    async def report_epoch(self, epoch: int, score: float) -> bool:
        """Called by the training after ``epoch``: whether it goes on. Waits for the answer."""
        async with self._changed:
            self._reached, self._score = epoch, score
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._stopped or self._passed >= epoch)
            return not self._stopped

    async def next_epoch(self, epoch: int) -> tuple[int, float]:
        """Called by the search: let the training pass ``epoch``, and wait until it asks after a later one.

        Returns:
            that epoch, and its score.
        """
        async with self._changed:
            self._passed = epoch
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._reached > epoch)
            return self._reached, self._score

    async def stop(self) -> None:
        """Called by the search: the training shall end when it asks next."""
        async with self._changed:
            self._stopped = True
            self._changed.notify_all()


def create_trial_controller() -> ActorHandle[Any]:
    """A referee for one training; it dies with its handle."""
    return cast("ActorHandle[Any]", ray.remote(num_cpus=0, scheduling_strategy="DEFAULT")(TrialController).remote())
