"""The folder of a run: only one job at a time writes into it, and it holds the settings with which the run was started.

A run is continued by its name. Whether that name means the same training is decided by what lies in the folder, and not
by what tracking recorded, which may be lost, deleted or elsewhere.
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
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipelines.storage.folder import StorageFolder
from pipelines.storage.lock import describe_this_process, hold_lock
from pipelines.tracking.provenance import flatten_settings, without_secrets
from pipelines.train import checkpoint
from pipelines.train.errors import RunInUseError

log = logging.getLogger(__name__)

T = TypeVar("T")

_START, _LOCK, _LEASE = "run.json", ".lock", "lease.json"


@dataclass(frozen=True)
class RunStart:
    """The settings and data with which a run was started.

    Attributes:
        config: the configuration tree, without secrets.
        data: hash of the data's index; "" if unknown.
    """

    config: dict[str, Any]
    data: str


@dataclass(frozen=True)
class LeaseTimes:
    """The times of a lease, in seconds.

    Attributes:
        beat_s: between two renewals.
        dead_s: from the last renewal until the holder counts as dead.
        settle_s: from writing a lease until it is read again. Of two processes that write one at once, the last one
            holds it.
    """

    beat_s: float = 10.0
    dead_s: float = 60.0
    settle_s: float = 2.0


@dataclass(frozen=True)
class _RunLease:
    token: str
    holder: str
    host: str
    pid: int
    beat: float


_RUN_START, _LEASE_FILE = TypeAdapter(RunStart), TypeAdapter(_RunLease)


@contextmanager
def lock_run_folder(folder: str, times: LeaseTimes = LeaseTimes()) -> Iterator[None]:
    """Hold the lock of a run's folder while the block runs, so that no other job writes into it.

    On a file system this is a lock, which ends with this process. An object store has no locks: there it is a lease,
    renewed while the process lives.

    Raises:
        CheckpointError: the folder cannot be written.
        RunInUseError: another job holds it; the message says which.
    """
    with ExitStack() as stack:
        try:
            run = StorageFolder(folder)
            if run.is_local:
                stack.enter_context(hold_lock(Path(run.path(_LOCK)), lambda holder: _run_in_use_error(folder, holder)))
            else:
                stack.enter_context(_hold_lease(run, times))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise checkpoint.CheckpointError(
                f"the run's folder {folder} cannot be used ({error}); choose a storage folder that can be written"
            ) from error
        yield


def read_run_start(folder: str) -> RunStart | None:
    """Read what the run in a folder was started with; None if there is no run. It is in the newest checkpoint or,
    before the first one, in a file.
    """
    state = checkpoint.state_of_newest_checkpoint(folder)
    if state is not None:
        return RunStart(state.get("config", {}), state.get("data", ""))
    return _read_json(StorageFolder(folder), _START, _RUN_START)


def write_run_start(folder: str, start: RunStart) -> None:
    """Record what a run is started with, before anything else is written."""
    tree = {"config": without_secrets(start.config), "data": start.data}
    StorageFolder(folder).write(_START, json.dumps(tree, indent=1, sort_keys=True).encode())


def describe_setting_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], may_change: Callable[[str], bool]
) -> list[str]:
    """Describe the settings in which two configuration trees differ, each as ``a.b.c: old -> new``.

    Args:
        may_change: of a dotted key, whether a difference does not count.
    """
    before, after = flatten_settings(without_secrets(old)), flatten_settings(without_secrets(new))
    return [
        f"{key}: {before.get(key, 'nothing')} -> {after.get(key, 'nothing')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not may_change(key)
    ]


@contextmanager
def _hold_lease(run: StorageFolder, times: LeaseTimes) -> Iterator[None]:
    token, described = secrets.token_hex(16), describe_this_process()

    def renew_lease() -> None:
        lease = _RunLease(token, described, socket.gethostname(), os.getpid(), time.time())
        run.write(_LEASE, _LEASE_FILE.dump_json(lease))

    current = _read_json(run, _LEASE, _LEASE_FILE)
    if current is not None and not _has_lease_holder_ended(current, times):
        raise _run_in_use_error(run.uri, current.holder)
    renew_lease()
    time.sleep(times.settle_s)
    current = _read_json(run, _LEASE, _LEASE_FILE)
    if current is None or current.token != token:
        raise _run_in_use_error(run.uri, current.holder if current else "another process")
    ended = threading.Event()

    def renew_lease_until_stopped() -> None:
        while not ended.wait(times.beat_s):
            try:
                current = _read_json(run, _LEASE, _LEASE_FILE)
                if current is not None and current.token != token:
                    log.error("the lease of run %s was taken by %s: end one of both", run.uri, current.holder)
                    return
                renew_lease()
            except OSError as error:  # it is tried again after the next beat
                log.warning("the lease of run %s could not be renewed: %s", run.uri, error)

    thread = threading.Thread(target=renew_lease_until_stopped, name="run-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        current = _read_json(run, _LEASE, _LEASE_FILE)
        if current is not None and current.token == token:
            run.remove(_LEASE)


def _has_lease_holder_ended(lease: _RunLease, times: LeaseTimes) -> bool:
    """Whether the holder of a lease has ended. Assumes that the machines' clocks agree within ``times.dead_s``."""
    if abs(time.time() - lease.beat) > times.dead_s:
        return True
    if lease.host != socket.gethostname():
        return False
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _run_in_use_error(folder: str, described: str) -> RunInUseError:
    return RunInUseError(
        f"the run in {folder} is under way: {described} writes there; wait until that has ended, end it, or choose "
        "another name"
    )


def _read_json(run: StorageFolder, name: str, form: TypeAdapter[T]) -> T | None:
    """Read a JSON file of the run's folder; None if it is missing or damaged."""
    try:
        return form.validate_json(run.read(name))
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
