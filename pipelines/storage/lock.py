"""One at a time: a lock on a file, which ends with the process that holds it, however that ends.

It holds among all that see the file: the processes of a machine, and the nodes of a cluster on a shared file system
with locks (NFS, where Linux makes POSIX locks of these; most cluster file systems).
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

_POLL_S = 0.05


@contextmanager
def locked(file: Path, refusal: Exception | Callable[[str], Exception], wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock while the block runs. The file stays: removing it would let two hold two of the same name.

    Args:
        refusal: what to raise where another holds it, or what makes that of the holder's description (see ``holder``).

    Raises:
        Exception: ``refusal``, where another holds it and still did after ``wait_s`` seconds.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with file.open("a+", encoding="utf-8") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= deadline:
                    held.seek(0)
                    described = held.read(1000).strip() or "another process"
                    raise (refusal if isinstance(refusal, Exception) else refusal(described)) from None
                time.sleep(_POLL_S)
        _describe(held.fileno(), holder())
        try:
            yield
        finally:
            _describe(held.fileno(), "")


def holder() -> str:
    """This process as others are told of it: number, machine and time."""
    return f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _describe(descriptor: int, text: str) -> None:
    """What the file says is for people; it holds no lock, and a full disk is no reason not to hold one."""
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
    except OSError:
        pass
