"""Drill: the disk of the checkpoints becomes full in mid-epoch.

The disk is a tmpfs in a mount namespace of the drill's own, which needs no privileges and ends with its process.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.ledger import audit
from tests.faults.trainings import (
    CALM,
    EPOCHS,
    SAMPLES,
    assert_equal_weights,
    final,
    finish,
    ledger_of,
    said,
    start,
    worker_at,
)
from tests.jobs.conftest import ROOT


class Disk(NamedTuple):
    """A small disk: its folder where it is mounted, the same folder as seen from here, and the way in."""

    mounted: Path
    seen: Path
    enter: list[str]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mount = f"mount -t tmpfs -o size=64m tmpfs {tmp_path} && echo mounted && exec sleep infinity"
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no `unshare` here to mount a small disk with")
    holder = subprocess.Popen([unshare, "--map-root-user", "--mount", "sh", "-c", mount], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip("mounting a small disk is not permitted here")
        enter = ["nsenter", "--preserve-credentials", "--user", "--mount", f"--target={holder.pid}", f"--wd={ROOT}"]
        yield Disk(tmp_path, Path(f"/proc/{holder.pid}/root{tmp_path}"), enter)
    finally:
        holder.kill()
        holder.wait()


def fill(file: Path) -> None:
    """Write until nothing more fits."""
    with file.open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))


@pytest.mark.parametrize("database", ["elsewhere", "on it"])
def test_a_full_disk_ends_the_job_and_the_last_checkpoint_continues(
    uninterrupted: Path, disk: Disk, database: str
) -> None:
    folder, name = uninterrupted, f"full-{database.replace(' ', '-')}"
    elsewhere = [f"storage={disk.mounted / 'runs'}"]
    if database == "elsewhere":
        elsewhere.append(f"tracking.uri=sqlite:///{folder}/full.db")
    (disk.seen / "runs").mkdir()
    training = start(name, folder, *elsewhere, inside=disk.enter)
    worker_at(training, ledger_of(disk.seen, name), 0, 17)
    fill(disk.seen / "ballast")
    assert training.wait(900) == 1
    printed = said(folder, name)
    assert "No space left on device" in printed.splitlines()[-1]
    assert "continues from the last whole checkpoint" in printed.splitlines()[-1]
    assert "Traceback" not in printed
    assert len(printed.splitlines()) < 100, "each failure of workers is a line"
    assert printed.count("metrics are not recorded for now") <= 8, "once for each time that a worker was started"
    last = final(disk.seen, name)
    assert last.step >= 12

    (disk.seen / "ballast").unlink()
    finish(start(name, folder, *elsewhere, inside=disk.enter), folder, name)
    assert audit(ledger_of(disk.seen, name), SAMPLES, EPOCHS).faults == []
    assert_equal_weights(final(disk.seen, name), final(folder, CALM))
