"""Drill: ``kill -9`` of a training worker in mid-epoch.

The run must end by itself as one MLflow run, with every sample seen once an epoch and weights that equal those of an
uninterrupted run bit for bit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from safetensors.numpy import load_file

from pipelines.train import checkpoint
from tests.faults.ledger import audit
from tests.jobs.conftest import ROOT, SMALL, coloured_pictures

EPOCHS, SAMPLES = 3, 240
SETTINGS = [*SMALL, f"train.epochs={EPOCHS}", "train.checkpoint_steps=4", "train.ledger=true"]


def start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs.train", "--config", "jobs/configs/demo.toml", f"name={name}"]
    return subprocess.Popen(
        [*command, *SETTINGS, f"storage={folder / 'runs'}", f"data.tars={folder / 'data'}"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=(folder / f"{name}.log").open("ab"), stderr=subprocess.STDOUT,
    )  # fmt: skip


def prepare(folder: Path) -> None:
    """Import and index the data that the trainings in ``folder`` share."""
    (folder / "pictures").mkdir()
    source = coloured_pictures(folder / "pictures", train=SAMPLES)
    for job in ("import_data", "index"):
        command = [sys.executable, "-m", f"jobs.{job}", "--config", "jobs/configs/demo.toml", *SETTINGS, *source]
        subprocess.run([*command, f"data.tars={folder / 'data'}"], cwd=ROOT, check=True)


def worker_at(ledger: Path, rank: int, step: int, timeout_s: float = 300) -> int:
    """Wait until the worker of ``rank`` has begun ``step``; returns its process id."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for file in ledger.glob(f"rank{rank}-*.jsonl"):
            if f'"step": {step},' in file.read_text():
                return int(file.stem.split("-")[2])
        time.sleep(0.05)
    raise AssertionError(f"rank {rank} did not reach step {step}")


def final(folder: Path, name: str) -> checkpoint.Stored:
    newest = checkpoint.latest(*checkpoint.open_storage(str(folder / "runs" / name)))
    assert newest is not None
    return newest


def assert_equal_weights(one: checkpoint.Stored, other: checkpoint.Stored) -> None:
    files = [load_file(f"{stored.path}/model/model.safetensors") for stored in (one, other)]
    assert files[0].keys() == files[1].keys()
    for key, value in files[0].items():
        assert value.tobytes() == files[1][key].tobytes(), key


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drill")
    prepare(folder)
    assert start("calm", folder).wait(900) == 0, (folder / "calm.log").read_text()
    return folder


@pytest.mark.parametrize(("rank", "step"), [(1, 22), (0, 34)])
def test_a_killed_worker_costs_nothing(uninterrupted: Path, rank: int, step: int) -> None:
    folder, name = uninterrupted, f"killed-{rank}-{step}"
    training = start(name, folder)
    os.kill(worker_at(folder / "runs" / name / "ledger", rank, step), signal.SIGKILL)
    assert training.wait(900) == 0, (folder / f"{name}.log").read_text()
    check(folder, name)


def test_a_killed_driver_costs_nothing(uninterrupted: Path) -> None:
    folder, name = uninterrupted, "driver"
    training = start(name, folder)
    worker_at(folder / "runs" / name / "ledger", 0, 18)
    training.kill()
    training.wait()
    time.sleep(5)  # the cluster that the driver had started ends with it
    assert start(name, folder).wait(900) == 0, (folder / f"{name}.log").read_text()
    check(folder, name)


def runs_of(client: mlflow.MlflowClient, name: str) -> list[Run]:
    """The tracked runs of a training."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found: list[Run] = client.search_runs(experiments, f"tags.`training.run` = '{name}'")
    return found


def check(folder: Path, name: str) -> None:
    found = audit(folder / "runs" / name / "ledger", SAMPLES, EPOCHS)
    assert found.faults == []
    # Steps need not be done twice: the kill may come between a checkpoint and the next step.
    assert len(list((folder / "runs" / name / "ledger").glob("rank0-*.jsonl"))) > 1, "nothing was interrupted"
    assert_equal_weights(final(folder, name), final(folder, "calm"))

    # Not mlflow.set_tracking_uri: that is an environment variable, which the jobs of later drills would obey.
    client = mlflow.MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    runs, (calm,) = runs_of(client, name), runs_of(client, "calm")
    assert len(runs) == 1
    for metric in ("train/loss", "val/accuracy"):
        lines = client.get_metric_history(runs[0].info.run_id, metric)
        steps = [line.step for line in lines]
        assert steps == sorted(set(steps)), f"{metric} has two lines for one step"
        expected = {m.step: m.value for m in client.get_metric_history(calm.info.run_id, metric)}
        assert {line.step: line.value for line in lines} == expected
