"""Saves metric values that the tracking store has not accepted in the run's folder, so that they outlive their process.

    <run>/waiting/<time>-<process>.jsonl    [key, value, step, timestamp in ms] a line

A process writes one file, replaces it as a whole, and takes over the files of earlier processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable

from pipelines.storage.folder import StorageFolder
from pipelines.tracking.metric_queue import MetricPoint


class UnsentMetrics:
    """The unsent metrics in a run's folder.

    Args:
        run: the run's folder in storage.
    """

    def __init__(self, run: str) -> None:
        self._folder = StorageFolder(f"{run}/waiting")
        self._own = f"{time.time_ns()}-{os.getpid()}.jsonl"
        self._replaced: set[str] = set()

    def read(self) -> list[MetricPoint]:
        """Read the points that earlier processes could not send, in the order in which they were logged. A
        damaged line is skipped.

        Raises:
            OSError: the storage cannot be read.
        """
        names = [file.name for file in self._folder.files() if file.name.endswith(".jsonl")]
        points: dict[tuple[str, int], MetricPoint] = {}
        for name in names:
            for row in self._folder.read(name).decode(errors="replace").splitlines():
                try:
                    key, value, step, timestamp_ms = json.loads(row)
                    point = MetricPoint(str(key), float(value), int(step), int(timestamp_ms))
                except (ValueError, TypeError):
                    continue
                points.setdefault((point.key, point.step), point)
        self._replaced.update(names)
        return list(points.values())

    def write(self, points: Iterable[MetricPoint]) -> None:
        """Replace the points that this process has read or written before by these.

        Raises:
            OSError: the storage cannot be written; what was written before is still there.
        """
        rows = [json.dumps([point.key, point.value, point.step, point.timestamp_ms]) for point in points]
        own = {self._own} if rows else set[str]()
        if rows:
            self._folder.write(self._own, ("\n".join(rows) + "\n").encode())
        for name in self._replaced - own:
            self._folder.remove(name)
        self._replaced = own
