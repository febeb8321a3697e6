"""Drill: the training as a submitted job on a cluster with token authentication, started by infra/cluster.sh."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests.faults.trainings import SETTINGS, places, prepare, runs_of
from tests.jobs.conftest import ROOT

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node of this test's own; yields the environment of one who holds its token."""
    script = str(ROOT / "infra/cluster.sh")
    places = ["--state", str(tmp_path / "state"), "--token", str(tmp_path / "token")]
    ports = ["--port", str(free_port()), "--dashboard-port", str(free_port())]
    ports += ["--temp-dir", f"/tmp/ray-drill-{os.getpid()}"]  # sockets want a short path
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    limits = ["--", "--num-cpus=8", "--object-store-memory=200000000"]
    subprocess.run([script, "start", *places, *ports, *limits], check=True, env=environment)
    try:
        exported = subprocess.run(
            [script, "env", *places], check=True, env=environment, capture_output=True, text=True
        ).stdout
        yield environment | dict(re.findall(r"export (\w+)=[\"']?([^\"'\n]*)", exported))
    finally:
        subprocess.run([script, "stop", *places], check=True, env=environment)


def test_a_training_is_submitted_with_a_token(cluster: dict[str, str], tmp_path: Path) -> None:
    prepare(tmp_path)
    command = [
        RAY, "job", "submit", "--working-dir", str(ROOT), "--",
        sys.executable, "-m", "jobs.train", "--config", "jobs/configs/demo.toml", "name=submitted", *SETTINGS,
        *places(tmp_path),
    ]  # fmt: skip
    without = {k: v for k, v in cluster.items() if "TOKEN" not in k and k != "RAY_AUTH_MODE"}
    refused = subprocess.run(
        command, env=without | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, cwd=ROOT
    )
    assert refused.returncode != 0

    done = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "registered vlmodel version 1" in done.stdout
    assert re.search(r"train  step \d+/\d+ .*loss .*left", done.stdout + done.stderr)
    (run,) = runs_of(mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db"), "submitted")
    assert run.info.status == "FINISHED"
