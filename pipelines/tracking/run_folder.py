"""The folder of a run: one job at a time writes into it, and what it was begun with is kept there.

A run is continued by its name. That the name means the same training is judged by what lies in the folder, and not by
what tracking recorded, which may be lost, deleted, or kept elsewhere.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipelines.storage.lock import holder, locked
from pipelines.tracking.provenance import flatten, without_secrets
from pipelines.train import checkpoint
from pipelines.train.errors import RunInUseError

log = logging.getLogger(__name__)

_BEGINNING, _LOCK, _LEASE = "run.json", ".lock", "lease.json"


@dataclass(frozen=True)
class RunStart:
    """What a run was begun with.

    Attributes:
        config: the configuration tree, without secrets.
        data: hash of the data's index; "" where it is not known.
    """

    config: dict[str, Any]
    data: str


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds between two signs of life, from the last of them until the holder is taken for dead, and from writing a
    lease until it is read again, since the last of two that write it at once has it.
    """

    beat_s: float = 10.0
    dead_s: float = 60.0
    settle_s: float = 2.0


@contextmanager
def exclusive(folder: str, times: LeaseTimes = LeaseTimes()) -> Iterator[None]:
    """Be the only job that writes into a run's folder while the block runs.

    On a file system that is a lock, which ends with this process. An object store has no locks: there it is a lease,
    renewed while the process lives.

    Raises:
        CheckpointError: the folder cannot be written.
        RunInUseError: another job does; the message says which.
    """
    filesystem, path = checkpoint.open_storage(folder)
    with ExitStack() as held:
        try:
            if isinstance(filesystem, pafs.LocalFileSystem):
                held.enter_context(locked(Path(path) / _LOCK, lambda described: _in_use(folder, described)))
            else:
                held.enter_context(_leased(filesystem, path, times))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise checkpoint.CheckpointError(
                f"the run's folder {folder} cannot be used ({error}); choose a storage folder that can be written"
            ) from error
        yield


def read_start(folder: str) -> RunStart | None:
    """What the run in a folder was begun with, None where nothing was. Checkpoints say it themselves; before the first
    one a file does.
    """
    filesystem, path = checkpoint.open_storage(folder)
    state = checkpoint.newest_state(filesystem, path)
    if state is not None:
        return RunStart(state.get("config", {}), state.get("data", ""))
    try:
        tree = json.loads(_read(filesystem, f"{path}/{_BEGINNING}"))
        return RunStart(dict(tree["config"]), str(tree["data"]))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def write_start(folder: str, begun: RunStart) -> None:
    """Keep what a run is begun with, before anything is made of it."""
    filesystem, path = checkpoint.open_storage(folder)
    tree = {"config": without_secrets(begun.config), "data": begun.data}
    write_whole(filesystem, f"{path}/{_BEGINNING}", json.dumps(tree, indent=1, sort_keys=True).encode())


def differences(old: Mapping[str, Any], new: Mapping[str, Any], may_change: Callable[[str], bool]) -> list[str]:
    """Settings of two configuration trees that differ, each as ``a.b.c: old -> new``.

    Args:
        may_change: of a dotted key, whether a difference does not count.
    """
    before, after = flatten(without_secrets(old)), flatten(without_secrets(new))
    return [
        f"{key}: {before.get(key, 'nothing')} -> {after.get(key, 'nothing')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not may_change(key)
    ]


def write_whole(filesystem: pafs.FileSystem, path: str, data: bytes) -> None:
    """Write a file that is there as a whole or not at all; a put to an object store is that already."""
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    partial = Path(f"{path}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _leased(filesystem: pafs.FileSystem, path: str, times: LeaseTimes) -> Iterator[None]:
    name, token, described = f"{path}/{_LEASE}", secrets.token_hex(16), holder()

    def renew() -> None:
        lease = {
            "token": token, "holder": described, "host": socket.gethostname(), "pid": os.getpid(), "beat": time.time()
        }  # fmt: skip
        write_whole(filesystem, name, json.dumps(lease).encode())

    found = _lease(filesystem, name)
    if found is not None and not _is_dead(found, times):
        raise _in_use(path, found["holder"])
    renew()
    time.sleep(times.settle_s)
    found = _lease(filesystem, name)
    if found is None or found["token"] != token:
        raise _in_use(path, found["holder"] if found else "another process")
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(times.beat_s):
            try:
                current = _lease(filesystem, name)
                if current is not None and current["token"] != token:
                    log.error("the lease of run %s was taken by %s: end one of both", path, current["holder"])
                    return
                renew()
            except OSError as error:  # the next time it may be written again
                log.warning("the lease of run %s could not be renewed: %s", path, error)

    thread = threading.Thread(target=keep, name="run-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        current = _lease(filesystem, name)
        if current is not None and current["token"] == token:
            filesystem.delete_file(name)


def _lease(filesystem: pafs.FileSystem, name: str) -> dict[str, Any] | None:
    try:
        tree = json.loads(_read(filesystem, name))
        return {"token": str(tree["token"]), "holder": str(tree["holder"]), "host": str(tree["host"]),
                "pid": int(tree["pid"]), "beat": float(tree["beat"])}  # fmt: skip
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _is_dead(lease: Mapping[str, Any], times: LeaseTimes) -> bool:
    """Whether a lease's holder is no more. The machines' clocks are taken to agree within ``times.dead_s``."""
    if abs(time.time() - lease["beat"]) > times.dead_s:
        return True
    if lease["host"] != socket.gethostname():
        return False
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _in_use(folder: str, described: str) -> RunInUseError:
    return RunInUseError(
        f"the run in {folder} is under way: {described} writes there; wait until that has ended, end it, or choose "
        "another name"
    )


def _read(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_file(path) as stream:
        data: bytes = stream.read()
    return data
