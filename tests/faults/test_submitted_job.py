"""Drill: the training as a submitted job on a cluster with token authentication, started by infra/cluster.sh."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mlflow

from tests.faults.clusters import RAY, cluster
from tests.faults.trainings import SETTINGS, places, prepare, runs_of
from tests.jobs.conftest import ROOT


def test_a_training_is_submitted_with_a_token(tmp_path: Path) -> None:
    prepare(tmp_path)
    settings = ["--config", "jobs/configs/demo.toml", "name=submitted", *SETTINGS, *places(tmp_path)]
    with cluster(tmp_path) as head:
        known = head.environment
        stranger = {k: v for k, v in known.items() if "TOKEN" not in k} | {"RAY_AUTH_MODE": "disabled"}
        refused = subprocess.run(
            [RAY, "job", "submit", "--working-dir", str(ROOT), "--", sys.executable, "-m", "jobs.train", *settings],
            env=stranger, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert refused.returncode != 0

        done = head.submit("train", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "registered vlmodel version 1" in done.stdout
    assert re.search(r"train  step \d+/\d+  (left|took) .*loss", done.stdout + done.stderr)
    (run,) = runs_of(mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db"), "submitted")
    assert run.info.status == "FINISHED"
