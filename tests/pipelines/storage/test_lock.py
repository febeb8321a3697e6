from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.storage.lock import hold_lock

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.storage.lock import hold_lock
with hold_lock(Path(sys.argv[1]), OSError()):
    print("held", flush=True)
    time.sleep(600)
"""


class RetrainingBusyError(Exception):
    pass


def test_it_is_held_by_one_and_ends_with_a_killed_process(tmp_path: Path) -> None:
    file = tmp_path / "sub" / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RetrainingBusyError, match="by a test"),
            hold_lock(file, RetrainingBusyError("by a test"), wait_s=0.1),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with hold_lock(file, RetrainingBusyError()):
        pass


def test_threads_of_a_process_exclude_each_other(tmp_path: Path) -> None:
    entered, refused = threading.Event(), list[RetrainingBusyError]()

    def enter() -> None:
        try:
            with hold_lock(tmp_path / "lock", RetrainingBusyError()):
                entered.set()
        except RetrainingBusyError as error:
            refused.append(error)

    with hold_lock(tmp_path / "lock", RetrainingBusyError()):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert refused
    assert not entered.is_set()


def test_who_waits_gets_it_when_it_is_free(tmp_path: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with hold_lock(tmp_path / "lock", RetrainingBusyError(), wait_s=60):
            entered.set()

    with hold_lock(tmp_path / "lock", RetrainingBusyError()):
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.2)
    thread.join()
    assert entered.is_set()
