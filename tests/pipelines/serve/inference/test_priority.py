"""Work that gives way to others."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from pipelines.serve.inference.priority import run_at_low_priority


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="niceness belongs to a thread on Linux alone")
def test_the_thread_that_works_gives_way_and_no_other_does() -> None:
    before = niceness()
    # Those that it starts do too, such as the ones that a matrix product is shared with.
    child_niceness: list[int] = []

    def work() -> int:
        started = threading.Thread(target=lambda: child_niceness.append(niceness()))
        started.start()
        started.join()
        return niceness()

    assert run_at_low_priority(work) == child_niceness[0] == max(before, 10)
    assert niceness() == before


def test_what_the_work_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_at_low_priority(lambda: 1 // 0)
