"""Drill: checkpoints, and Ray's list of them, are torn, altered or gone; the one before is used, and it is said."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from pipelines.storage.manifest import MANIFEST
from pipelines.train import checkpoint
from tests.faults.trainings import assert_as_calm, finish, ledger_of, said, start, stop, whole, worker_at


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def whole_steps(run: Path) -> list[int]:
    return [stored.step for stored in whole(run)]


def test_a_worker_killed_in_an_upload_leaves_no_checkpoint(uninterrupted: Path) -> None:
    folder, name = uninterrupted, "uploading"
    run, ledger = folder / "runs" / name, ledger_of(uninterrupted, name)
    training = start(name, folder)
    process = worker_at(training, ledger, 0, 2)
    torn = stopped_while_uploading(run, process)
    os.kill(process, signal.SIGKILL)
    finish(training, folder, name)
    printed = said(folder, name)
    assert f"{torn} has no manifest.json: it was never completed" in printed
    assert "continues from " in printed
    assert_as_calm(folder, name)


def stopped_while_uploading(run: Path, process: int) -> Path:
    """Suspend the process where it has begun, and not completed, a checkpoint that is not its first; its folder."""
    while True:
        for torn in sorted(run.glob("step-*"))[1:][-1:]:  # Ray deletes older ones
            if not (torn / MANIFEST).exists() and any(torn.rglob("*")):
                os.kill(process, signal.SIGSTOP)
                if not (torn / MANIFEST).exists():
                    return torn
                os.kill(process, signal.SIGCONT)


def test_what_is_torn_altered_or_gone_is_passed_over(uninterrupted: Path) -> None:
    folder, name = uninterrupted, "damaged"
    run, ledger = folder / "runs" / name, ledger_of(uninterrupted, name)

    training = start(name, folder)
    first = worker_at(training, ledger, 0, 18)
    stop(training)
    snapshot = run / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[:100])
    *_, before, newest = whole_steps(run)
    flip_a_byte(run / checkpoint.checkpoint_folder_name(newest) / "trainer.pt")

    training = start(name, folder)
    worker_at(training, ledger, 0, 33, seen=[first])  # the first may have come further before it was stopped
    stop(training)
    printed = said(folder, name)
    assert f"{snapshot} cannot be used and was set aside" in printed
    assert f"{run / checkpoint.checkpoint_folder_name(newest)}/trainer.pt was altered after it was written" in printed
    assert f"continues from {run / checkpoint.checkpoint_folder_name(before)} " in printed

    *_, before, newest = whole_steps(run)
    shutil.rmtree(run / checkpoint.checkpoint_folder_name(newest))
    finish(start(name, folder), folder, name)
    assert f"continues from {run / checkpoint.checkpoint_folder_name(before)} " in said(folder, name)
    assert_as_calm(folder, name)
