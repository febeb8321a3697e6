"""Runs asyncio tasks that nobody awaits: keeps them alive, logs their failures, and ends them before the
process ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class BackgroundTasks:
    """A set of asyncio tasks that run beside the requests."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[None]]()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the coroutine ``work`` as a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._remove_finished_task)
        return task

    async def drain(self, timeout_s: float) -> None:
        """Wait for all tasks; cancel those that take longer than ``timeout_s``."""
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks), timeout=timeout_s)
            for task in late:
                task.cancel()

    def _remove_finished_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a comparison with the challenger failed", exc_info=error)
