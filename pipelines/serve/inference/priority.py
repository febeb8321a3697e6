"""Who comes first on shared cores: what answers requests, then a training; and of a new replica, what can wait.

Ray starts each of its workers, a replica as well as a training's, with a niceness of 15.
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
"""Variables of a worker's environment: before Ray's other workers, or as they are."""

_NICENESS = 10
"""Of a busy core such a thread has a tenth of what others have. With less, a busy machine would never be done."""


def run_at_low_priority(work: Callable[[], T]) -> T:
    """The result of ``work()``, done by a thread that leaves the cores to whoever else wants them.

    Niceness is Linux's, which counts it by thread; threads that ``work`` starts have it too. It cannot be taken back
    without privilege, and so the thread ends with its work.
    """
    with ThreadPoolExecutor(1, "leisurely", initializer=_give_way) as thread:
        return thread.submit(work).result()


def _give_way() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
