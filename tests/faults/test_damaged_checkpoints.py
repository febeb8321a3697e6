"""Drill: checkpoints, and Ray's list of them, are torn, altered or gone; the one before is used, and it is said."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from pyarrow.fs import LocalFileSystem

from pipelines.train import checkpoint
from tests.faults.trainings import assert_as_calm, finish, ledger_of, said, start, stop, worker_at


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def whole(run: Path) -> list[int]:
    """Steps of a run's usable checkpoints, oldest first."""
    return sorted(stored.step for stored in checkpoint.valid_checkpoints(LocalFileSystem(), str(run)))


def test_a_worker_killed_in_an_upload_leaves_no_checkpoint(uninterrupted: Path) -> None:
    folder, name = uninterrupted, "uploading"
    run, ledger = folder / "runs" / name, ledger_of(uninterrupted, name)
    training = start(name, folder)
    worker_at(training, ledger, 0, 2)
    # Opening a pipe that nobody reads stands still, as writing to a stuck disk does.
    torn = run / checkpoint.folder_name(20)
    torn.mkdir()
    os.mkfifo(torn / "trainer.pt")
    process = worker_at(training, ledger, 0, 23)
    assert (torn / "state.json").exists()
    assert not (torn / checkpoint.MANIFEST).exists()
    os.kill(process, signal.SIGKILL)
    (torn / "trainer.pt").unlink()
    finish(training, folder, name)
    printed = said(folder, name)
    assert f"{torn} has no manifest.json: it was never completed" in printed
    assert f"continues from {run / checkpoint.folder_name(16)}" in printed
    assert_as_calm(folder, name)


def test_what_is_torn_altered_or_gone_is_passed_over(uninterrupted: Path) -> None:
    folder, name = uninterrupted, "damaged"
    run, ledger = folder / "runs" / name, ledger_of(uninterrupted, name)

    training = start(name, folder)
    worker_at(training, ledger, 0, 18)
    stop(training)
    snapshot = run / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[:100])
    *_, before, newest = whole(run)
    flip_a_byte(run / checkpoint.folder_name(newest) / "trainer.pt")

    training = start(name, folder)
    worker_at(training, ledger, 0, 33)
    stop(training)
    printed = said(folder, name)
    assert f"{snapshot} cannot be used and was set aside" in printed
    assert f"{run / checkpoint.folder_name(newest)}/trainer.pt was altered after it was written" in printed
    assert f"continues from {run / checkpoint.folder_name(before)} " in printed

    *_, before, newest = whole(run)
    shutil.rmtree(run / checkpoint.folder_name(newest))
    finish(start(name, folder), folder, name)
    assert f"continues from {run / checkpoint.folder_name(before)} " in said(folder, name)
    assert_as_calm(folder, name)
