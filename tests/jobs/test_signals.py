"""A whole pipeline that is stopped from outside at several stages: nothing of it is left, and the command goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.jobs.conftest import ROOT
from tests.jobs.test_pipeline import DEMO, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

_MARK = "RAYLM_TEST_JOB"


def processes_of(mark: str) -> list[str]:
    """Command lines of all processes that a job with this mark in its environment has started, itself included."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


@contextmanager
def pipeline(mark: str, output: Path, arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The job ``pipeline``, which takes its standard input for a terminal and so goes on serving."""
    master, terminal = os.openpty()
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    with output.open("wb") as file:
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.pipeline", *DEMO, *arguments],
            cwd=ROOT, stdin=terminal, stdout=file, stderr=file, start_new_session=True,
            env=inherited | {_MARK: mark},
        )  # fmt: skip
    try:
        yield job
    finally:
        job.kill()
        os.close(master)
        os.close(terminal)


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_it_is_stopped_at_each_stage_and_goes_on(small: list[str], tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    arguments = [*small, f"storage={tmp_path / 'runs'}", f"serve.port={ports[0]}", f"tracking.page_port={ports[1]}"]
    stages = (
        (signal.SIGINT, "\nindex "),
        (signal.SIGTERM, "  loss "),
        (signal.SIGHUP, "\nregistering: "),
        (signal.SIGINT, "\nservice: "),
        (signal.SIGTERM, "\nCtrl-C stops both"),
    )
    for number, (sent, stage) in enumerate(stages):
        mark, output = uuid.uuid4().hex, tmp_path / f"{number}.txt"
        with pipeline(mark, output, arguments) as job:
            while stage not in output.read_text():
                assert job.poll() is None, f"it ended before {stage!r}:\n{output.read_text()}"
                time.sleep(0.05)
            job.send_signal(sent)
            assert job.wait(120) == 128 + sent, output.read_text()
            shown = output.read_text()
            line = f"pipeline: stopped by {sent.name}; the same command continues, and keeps what was finished"
            assert shown.splitlines()[-1] == line
            assert "Traceback" not in shown
            deadline = time.monotonic() + 120
            while left := processes_of(mark):
                assert time.monotonic() < deadline, left
                time.sleep(0.1)
            assert not any(map(is_listening, ports))
