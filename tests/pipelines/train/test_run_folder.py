"""A run's folder is one job's, and says what it was begun with."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage.folder import StorageFolder
from pipelines.train import checkpoint, run_folder
from pipelines.train.checkpoint import CheckpointError
from pipelines.train.errors import RunInUseError
from pipelines.train.run_folder import LeaseTimes, RunStart

ROOT = Path(__file__).resolve().parents[3]
QUICK = LeaseTimes(beat_s=0.5, dead_s=60.0, settle_s=0.0)
HOLD = "import sys, time; from pipelines.train import run_folder\nwith run_folder.lock_run_folder(sys.argv[1]):\n"
HOLD += "    print('held', flush=True)\n    time.sleep(600)\n"


@pytest.fixture
def remote() -> StorageFolder:
    """The folder of a run in an object store."""
    return StorageFolder(f"memory://{secrets.token_hex(8)}/run")


def test_a_second_job_is_told_who_the_first_is_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    first = subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        holder = rf"process {first.pid} on {socket.gethostname()} since 20.* UTC writes there"
        with pytest.raises(RunInUseError, match=holder), run_folder.lock_run_folder(folder):
            pass
        with run_folder.lock_run_folder(str(tmp_path / "other")):
            pass
    finally:
        first.kill()
        first.wait()
    with run_folder.lock_run_folder(folder):
        assert str(os.getpid()) in (tmp_path / "run" / ".lock").read_text()
    assert (tmp_path / "run" / ".lock").read_text() == ""


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match="choose a storage folder"),
        run_folder.lock_run_folder(f"{tmp_path}/file/run"),
    ):
        pass


def test_on_an_object_store_a_lease_is_renewed_and_given_back(remote: StorageFolder) -> None:
    with run_folder.lock_run_folder(remote.uri, QUICK):
        first = json.loads(remote.read("lease.json"))
        assert str(os.getpid()) in first["holder"]
        with pytest.raises(RunInUseError, match=f"process {os.getpid()} on"), run_folder.lock_run_folder(remote.uri):
            pass
        for _ in range(600):
            if json.loads(remote.read("lease.json"))["beat"] > first["beat"]:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the lease was not renewed")
    assert not remote.exists("lease.json")


@pytest.mark.parametrize(
    ("change", "blocks"),
    [
        ({}, True),
        ({"beat": 0.0}, False),
        ({"host": socket.gethostname(), "pid": 2**22 + 1}, False),
        ({"host": socket.gethostname(), "pid": os.getpid()}, True),
    ],
    ids=["alive elsewhere", "silent", "dead here", "alive here"],
)
def test_a_lease_of_a_dead_holder_does_not_block(remote: StorageFolder, change: dict[str, Any], blocks: bool) -> None:
    lease = {"token": "a", "holder": "process 1 on far", "host": "far", "pid": 1, "beat": time.time(), **change}
    remote.write("lease.json", json.dumps(lease).encode())
    if blocks:
        with pytest.raises(RunInUseError, match="process 1 on far"), run_folder.lock_run_folder(remote.uri, QUICK):
            pass
    else:
        with run_folder.lock_run_folder(remote.uri, QUICK):
            pass


def test_of_two_that_write_a_lease_at_once_the_last_has_it(
    remote: StorageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(_: float) -> None:
        lease = {**json.loads(remote.read("lease.json")), "token": "b", "holder": "the faster"}
        remote.write("lease.json", json.dumps(lease).encode())

    monkeypatch.setattr(time, "sleep", other)
    with pytest.raises(RunInUseError, match="the faster writes there"), run_folder.lock_run_folder(remote.uri, QUICK):
        pass
    assert json.loads(remote.read("lease.json"))["token"] == "b"


def test_a_run_says_what_it_was_begun_with(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    assert run_folder.read_run_start(folder) is None
    run_folder.write_run_start(folder, RunStart({"seed": 1, "data": {"tars": "http://me:pw@host/x"}}, "ab"))
    assert run_folder.read_run_start(folder) == RunStart({"seed": 1, "data": {"tars": "http://***@host/x"}}, "ab")
    # A checkpoint is the weights themselves, so what it says counts.
    step = tmp_path / "local"
    step.mkdir()
    checkpoint.write_checkpoint_state(step, {}, {"step": 4, "config": {"seed": 2}, "data": "cd"})
    checkpoint.upload_checkpoint(step, StorageFolder(folder).subfolder(checkpoint.checkpoint_folder_name(4)))
    assert run_folder.read_run_start(folder) == RunStart({"seed": 2}, "cd")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": 1}'])
def test_a_damaged_note_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert run_folder.read_run_start(str(tmp_path)) is None


def test_differences_are_named_with_both_values() -> None:
    old = {"seed": 0, "train": {"batch": 16, "threads": 1}, "mix": {}, "key": {"secret": "a"}}
    new = {"seed": 7, "train": {"batch": 16, "threads": 2}, "mix": {"a": {"weight": 1.0}}, "key": {"secret": "b"}}
    assert run_folder.describe_setting_differences(old, new, lambda key: key == "train.threads") == [
        "mix: {} -> nothing", "mix.a.weight: nothing -> 1.0", "seed: 0 -> 7",
    ]  # fmt: skip
