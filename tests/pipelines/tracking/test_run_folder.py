"""A run's folder is one job's, and says what it was begun with."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from pipelines.tracking import run_folder
from pipelines.tracking.run_folder import LeaseTimes, RunStart
from pipelines.train import checkpoint
from pipelines.train.checkpoint import CheckpointError
from pipelines.train.errors import RunInUseError

ROOT = Path(__file__).resolve().parents[3]
QUICK = LeaseTimes(beat_s=0.5, dead_s=60.0, settle_s=0.0)
HOLD = "import sys, time; from pipelines.train import run_folder\nwith run_folder.exclusive(sys.argv[1]):\n"
HOLD += "    print('held', flush=True)\n    time.sleep(600)\n"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Storage that is taken for an object store: any URI leads to a folder here."""
    files = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(checkpoint, "open_storage", lambda folder: (files, folder.partition("://")[2]))
    return tmp_path


def test_a_second_job_is_told_who_the_first_is_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    first = subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        holder = rf"process {first.pid} on {socket.gethostname()} since 20.* UTC writes there"
        with pytest.raises(RunInUseError, match=holder), run_folder.exclusive(folder):
            pass
        with run_folder.exclusive(str(tmp_path / "other")):
            pass
    finally:
        first.kill()
        first.wait()
    with run_folder.exclusive(folder):
        assert str(os.getpid()) in (tmp_path / "run" / ".lock").read_text()
    assert (tmp_path / "run" / ".lock").read_text() == ""


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="choose a storage folder"), run_folder.exclusive(f"{tmp_path}/file/run"):
        pass


def test_on_an_object_store_a_lease_is_renewed_and_given_back(remote: Path) -> None:
    lease = remote / "bucket" / "run" / "lease.json"
    with run_folder.exclusive("s3://bucket/run", QUICK):
        first = json.loads(lease.read_text())
        assert str(os.getpid()) in first["holder"]
        with pytest.raises(RunInUseError, match=f"process {os.getpid()} on"), run_folder.exclusive("s3://bucket/run"):
            pass
        for _ in range(600):
            with contextlib.suppress(ValueError):  # a put is whole on an object store, and in this stand-in not
                if json.loads(lease.read_text())["beat"] > first["beat"]:
                    break
            time.sleep(0.05)
        else:
            raise AssertionError("the lease was not renewed")
    assert not lease.exists()


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
def test_a_lease_of_a_dead_holder_does_not_block(remote: Path, change: dict[str, Any], blocks: bool) -> None:
    lease = {"token": "a", "holder": "process 1 on far", "host": "far", "pid": 1, "beat": time.time(), **change}
    (remote / "run").mkdir()
    (remote / "run" / "lease.json").write_text(json.dumps(lease))
    if blocks:
        with pytest.raises(RunInUseError, match="process 1 on far"), run_folder.exclusive("s3://run", QUICK):
            pass
    else:
        with run_folder.exclusive("s3://run", QUICK):
            pass


def test_of_two_that_write_a_lease_at_once_the_last_has_it(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(_: float) -> None:
        mine = json.loads((remote / "run" / "lease.json").read_text())
        (remote / "run" / "lease.json").write_text(json.dumps({**mine, "token": "b", "holder": "the faster"}))

    monkeypatch.setattr(time, "sleep", other)
    with pytest.raises(RunInUseError, match="the faster writes there"), run_folder.exclusive("s3://run", QUICK):
        pass
    assert json.loads((remote / "run" / "lease.json").read_text())["token"] == "b"


def test_a_run_says_what_it_was_begun_with(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    assert run_folder.read_start(folder) is None
    run_folder.write_start(folder, RunStart({"seed": 1, "data": {"tars": "http://me:pw@host/x"}}, "ab"))
    assert run_folder.read_start(folder) == RunStart({"seed": 1, "data": {"tars": "http://***@host/x"}}, "ab")
    # A checkpoint is the weights themselves, so what it says counts.
    step = tmp_path / "local"
    step.mkdir()
    checkpoint.write(step, {}, {"step": 4, "config": {"seed": 2}, "data": "cd"})
    checkpoint.upload(step, pafs.LocalFileSystem(), f"{folder}/{checkpoint.name_of(4)}")
    assert run_folder.read_start(folder) == RunStart({"seed": 2}, "cd")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": 1}'])
def test_a_damaged_note_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert run_folder.read_start(str(tmp_path)) is None


def test_differences_are_named_with_both_values() -> None:
    old = {"seed": 0, "train": {"batch": 16, "threads": 1}, "mix": {}, "key": {"secret": "a"}}
    new = {"seed": 7, "train": {"batch": 16, "threads": 2}, "mix": {"a": {"weight": 1.0}}, "key": {"secret": "b"}}
    assert run_folder.differences(old, new, lambda key: key == "train.threads") == [
        "mix: {} -> nothing", "mix.a.weight: nothing -> 1.0", "seed: 0 -> 7",
    ]  # fmt: skip


@pytest.mark.parametrize("make", [lambda f, p: run_folder.write_whole(f, p, b"new")])
def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, make: Callable[[Any, str], None]) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError):
        make(pafs.LocalFileSystem(), str(tmp_path / "a.json"))
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
