"""Sets priorities on shared cores: processes that answer requests come before trainings, and a replica's start comes
last.

Ray starts its workers, replicas as well as training workers, with a niceness of 15.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

HIGH, NORMAL = {"RAY_worker_niceness": "0"}, {"RAY_worker_niceness": "15"}
"""Environment variables of a worker: before Ray's other workers, or like them."""

_NICENESS = 10
"""On a busy core such a thread gets a tenth of what others get; with less it would never be done."""


def run_at_low_priority(work: Callable[[], T]) -> T:
    """Run ``work()`` in a thread with a higher niceness, which the threads that ``work`` starts inherit, and return its
    result.

    On Linux niceness belongs to a thread and cannot be lowered without privilege, so the thread ends with its work.
    """
    with ThreadPoolExecutor(1, "low-priority", initializer=_lower_priority) as thread:
        return thread.submit(work).result()


def _lower_priority() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
