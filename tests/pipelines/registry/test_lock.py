from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.registry.errors import RegistryError
from pipelines.registry.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.registry.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_it_is_held_by_one_and_ends_with_a_killed_process(tmp_path: Path) -> None:
    file = tmp_path / "sub" / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RegistryError, match=r"\.lock' has been locked for 0\.1 s"), locked(file, timeout_s=0.1):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(file, timeout_s=0):
        pass


def test_threads_of_a_process_exclude_each_other(tmp_path: Path) -> None:
    entered, refused = threading.Event(), list[RegistryError]()

    def enter() -> None:
        try:
            with locked(tmp_path / "lock", timeout_s=0):
                entered.set()
        except RegistryError as error:
            refused.append(error)

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert refused
    assert not entered.is_set()
