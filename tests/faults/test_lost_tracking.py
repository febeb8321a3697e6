"""Drill: a training meets all troubles at once. The MLflow server is gone, a worker is killed, an index job runs beside
it, and the disk of its checkpoints becomes full and has room again.

It ends with the weights of an undisturbed training, each sample seen once an epoch, and no metric value lost. The
server is gone for OUTAGE_S seconds, 60 if that variable is not set; the training is made longer with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.tracking.address import mlflow_server_command
from tests.faults.ledger import audit
from tests.faults.test_full_disk import Disk, disk, fill  # noqa: F401 - a fixture
from tests.faults.trainings import (
    CALM,
    SAMPLES,
    assert_equal_weights,
    command,
    curve,
    final,
    finish,
    ledger_of,
    places,
    prepare,
    said,
    start,
    worker_at,
)
from tests.infra.test_cluster_script import free_ports
from tests.jobs.conftest import ROOT

OUTAGE_S = float(os.environ.get("OUTAGE_S", "60"))
EPOCHS = 3 + int(OUTAGE_S / 20)
STEPS = 15 * EPOCHS


class Server:
    """An MLflow server with its database and files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self.address, self.database = f"http://127.0.0.1:{port}", f"sqlite:///{folder}/server.db"
        self._command = [*mlflow_server_command(self.database, port), "--artifacts-destination", str(folder / "files")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdout=quiet, stderr=quiet, start_new_session=True)
        while self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=2).close()
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.5)
        raise AssertionError("the MLflow server ended")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("mlflow"))
    running.start()
    yield running
    running.kill()


@pytest.mark.timeout(3600 + 20 * OUTAGE_S)
def test_all_troubles_at_once_cost_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    disk: Disk,  # noqa: F811
    server: Server,
) -> None:
    folder, name, longer = tmp_path_factory.mktemp("troubles"), "troubled", [f"train.epochs={EPOCHS}"]
    prepare(folder)
    finish(start(CALM, folder, *longer), folder, CALM)

    troubled = [*longer, f"storage={disk.mounted / 'runs'}", f"tracking.uri={server.address}"]
    (disk.seen / "runs").mkdir()
    ledger = ledger_of(disk.seen, name)
    training = start(name, folder, *troubled, inside=disk.enter)
    worker_at(training, ledger, 0, 5)
    server.kill()
    gone = time.monotonic()
    index = subprocess.Popen(command("index", *places(folder)), cwd=ROOT, stdout=subprocess.DEVNULL)
    os.kill(worker_at(training, ledger, 0, 9), signal.SIGKILL)
    while time.monotonic() < gone + 0.8 * OUTAGE_S and _step(ledger) < STEPS - 20:
        assert training.poll() is None, said(folder, name)
        time.sleep(0.1)
    fill(disk.seen / "ballast")  # at once: waiting for the index first would let the training end
    assert training.wait(900) == 1
    assert index.wait(600) == 0
    assert "continues from the last whole checkpoint" in said(folder, name).splitlines()[-1]
    last = final(disk.seen, name)
    assert last.step >= 8, "the outage of the server kept no checkpoint from being written"
    assert list((disk.seen / "runs" / name / "waiting").iterdir()), "metrics of the outage wait in the run's folder"
    (disk.seen / "ballast").unlink()

    time.sleep(max(0.0, gone + OUTAGE_S - time.monotonic()))
    server.start()
    finish(start(name, folder, *troubled, inside=disk.enter), folder, name)

    assert audit(ledger, SAMPLES, EPOCHS).faults == []
    assert_equal_weights(final(disk.seen, name), final(folder, CALM))
    for metric in ("train/loss", "val/accuracy"):
        assert curve(folder, name, metric, server.database) == curve(folder, CALM, metric)
    assert list((disk.seen / "runs" / name / "waiting").iterdir()) == []
    told = said(folder, name)
    # Once by the worker that lived then, and once by the one that took over.
    assert 1 <= told.count("metrics are not recorded for now") <= 8
    assert "too many to keep" not in told


def _step(ledger: Path) -> int:
    """The newest step that a worker has begun."""
    steps = [0]
    for file in ledger.glob("*.jsonl"):
        steps += [int(line.split('"step": ')[1].split(",")[0]) for line in file.read_text().splitlines()[-2:-1]]
    return max(steps)
