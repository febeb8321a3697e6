"""Metric values that tracking has not taken, in the run's folder: they outlive the process that logged them.

    <run>/waiting/<time>-<process>.jsonl    [key, value, step, timestamp in ms] a line

A process writes one file, as a whole each time, and takes over those of the processes before it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable

import pyarrow.fs as pafs

from pipelines.tracking.metric_queue import MetricPoint
from pipelines.tracking.run_folder import write_whole
from pipelines.train import checkpoint

_FOLDER = "waiting"


class UnsentMetrics:
    """The lines that wait in the folder of a run.

    Args:
        run: the run's folder in storage.
    """

    def __init__(self, run: str) -> None:
        self._filesystem, path = checkpoint.open_storage(run)
        self._folder = f"{path}/{_FOLDER}"
        self._own = f"{self._folder}/{time.time_ns()}-{os.getpid()}.jsonl"
        self._stored: set[str] = set()

    def read(self) -> list[MetricPoint]:
        """What former processes have left, in the order in which it was logged. A damaged line is passed over.

        Raises:
            OSError: the storage cannot be read.
        """
        selector = pafs.FileSelector(self._folder, allow_not_found=True)
        found = [f.path for f in self._filesystem.get_file_info(selector) if f.path.endswith(".jsonl")]
        lines: dict[tuple[str, int], MetricPoint] = {}
        for path in sorted(found):
            with self._filesystem.open_input_file(path) as stream:
                text = stream.read().decode(errors="replace")
            for row in text.splitlines():
                try:
                    key, value, step, timestamp_ms = json.loads(row)
                    lines.setdefault(
                        (str(key), int(step)), MetricPoint(str(key), float(value), int(step), int(timestamp_ms))
                    )
                except (ValueError, TypeError):
                    continue
        self._stored.update(found)
        return list(lines.values())

    def write(self, lines: Iterable[MetricPoint]) -> None:
        """Make these the lines that wait, in place of those that this process has read or kept before.

        Raises:
            OSError: the storage cannot be written; what was kept before is still there.
        """
        rows = [json.dumps([line.key, line.value, line.step, line.timestamp_ms]) for line in lines]
        if rows:
            write_whole(self._filesystem, self._own, ("\n".join(rows) + "\n").encode())
        for path in self._stored - ({self._own} if rows else set()):
            self._filesystem.delete_file(path)
        self._stored = {self._own} if rows else set()
