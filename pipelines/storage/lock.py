"""An exclusive lock on a file, which is released when its process ends, however it ends.

It works between the processes of a machine, and between the nodes of a cluster whose file system has POSIX locks (NFS
and most cluster file systems do).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def hold_lock(file: Path, refusal: Exception | Callable[[str], Exception], wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock while the block runs. The file is not removed, as two processes could then lock two files of its
    name.

    Args:
        refusal: the exception to raise where another process holds the lock, or a function that makes it from the
            holder's description (see ``describe_this_process``).

    Raises:
        Exception: ``refusal``, where another process still holds the lock after ``wait_s`` seconds.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock, which filelock would take where flock is missing, does not end with its process.
    lock = FileLock(file, wait_s, fallback_to_soft=False, on_acquired=_write_holder)
    try:
        lock.acquire()
    except Timeout:
        described = ""
        with suppress(OSError):
            described = file.read_text(encoding="utf-8").strip()[:1000]
        raise (refusal if isinstance(refusal, Exception) else refusal(described or "another process")) from None
    try:
        yield
    finally:
        with suppress(OSError):
            os.truncate(file, 0)
        lock.release()


def describe_this_process() -> str:
    """Describe this process for messages: number, machine and time."""
    return f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _write_holder(descriptor: int) -> None:
    with suppress(OSError):  # the text is only for messages; a full disk does not prevent the lock
        os.ftruncate(descriptor, 0)
        os.write(descriptor, describe_this_process().encode())
