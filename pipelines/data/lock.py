"""One at a time: a lock on a file, which ends with the process that holds it, however that ends.

It holds among all that see the file: the processes of a machine, and the nodes of a cluster on a shared file system
with locks (NFS, where Linux makes POSIX locks of these; most cluster file systems).
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.05


@contextmanager
def locked(file: Path, refusal: Exception, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock while the block runs. The file stays: removing it would let two hold two of the same name.

    Raises:
        Exception: ``refusal``, where another holds it and still did after ``wait_s`` seconds.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with file.open("a") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= deadline:
                    raise refusal from None
                time.sleep(_POLL_S)
        yield
