"""Small trainings for the drills to disturb, each a job in a process of its own; what must be true of them after."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import mlflow
from mlflow.entities import Run
from safetensors.numpy import load_file

from pipelines.train import checkpoint
from tests.faults.ledger import audit
from tests.jobs.conftest import ROOT, SMALL, coloured_pictures

EPOCHS, SAMPLES, STEPS = 3, 240, 45
SETTINGS = [*SMALL, f"train.epochs={EPOCHS}", "train.checkpoint_steps=4", "train.ledger=true"]
CALM = "calm"
"""Name of the training that nothing disturbs."""


def command(job: str, *overrides: str) -> list[str]:
    """The command line of a job with the drills' settings, and these over them."""
    return [sys.executable, "-m", f"jobs.{job}", "--config", "jobs/configs/demo.toml", *SETTINGS, *overrides]


def places(folder: Path) -> list[str]:
    """Where the trainings in ``folder`` read and write."""
    return [f"storage={folder / 'runs'}", f"data.tars={folder / 'data'}"]


started: list[subprocess.Popen[bytes]] = []
"""All that ``start``, and the drills themselves, have started."""


def start(name: str, folder: Path, *overrides: str, inside: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start the training ``name`` on the data in ``folder``; what it prints is in ``folder/NAME.log``.

    Args:
        overrides: settings of its own.
        inside: a command that runs the job's.
    """
    with (folder / f"{name}.log").open("ab") as log:
        training = subprocess.Popen(
            [*inside, *command("train", f"name={name}", *places(folder), *overrides)],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    started.append(training)
    return training


def said(folder: Path, name: str) -> str:
    """All that the training ``name`` has printed."""
    return (folder / f"{name}.log").read_text(errors="replace")


def finish(training: subprocess.Popen[bytes], folder: Path, name: str) -> None:
    """Wait until the training has ended well."""
    assert training.wait(900) == 0, said(folder, name)


def stop(training: subprocess.Popen[bytes]) -> None:
    """Kill the driver, and wait until the cluster that it had started is gone."""
    training.kill()
    training.wait()
    time.sleep(5)


def prepare(folder: Path) -> None:
    """Import and index the data that the trainings in ``folder`` share."""
    (folder / "pictures").mkdir()
    source = coloured_pictures(folder / "pictures", train=SAMPLES)
    for job in ("import_data", "index"):
        subprocess.run(command(job, *source, *places(folder)), cwd=ROOT, check=True)


def worker_at(
    training: subprocess.Popen[bytes], ledger: Path, rank: int, step: int, *, seen: Sequence[int] = ()
) -> int:
    """Wait until the worker of ``rank`` has begun ``step`` or a later one; returns its process id.

    Args:
        seen: processes of this rank that are of the past.
    """
    while training.poll() is None:
        for file in ledger.glob(f"rank{rank}-*.jsonl"):
            process = int(file.stem.split("-")[2])
            if process not in seen and any(f'"step": {later},' in file.read_text() for later in range(step, STEPS)):
                return process
        time.sleep(0.02)
    raise AssertionError(f"the training of {ledger} ended before rank {rank} reached step {step}")


def ledger_of(folder: Path, name: str) -> Path:
    return folder / "runs" / name / "ledger"


def whole(run: Path) -> list[checkpoint.StoredCheckpoint]:
    """A run's usable checkpoints, oldest first."""
    found = []
    for stored in checkpoint.find_valid_checkpoints(str(run)):
        with suppress(checkpoint.CheckpointError), stored.as_local():
            found.append(stored)
    return found[::-1]


def final(folder: Path, name: str) -> checkpoint.StoredCheckpoint:
    return whole(folder / "runs" / name)[-1]


def assert_equal_weights(one: checkpoint.StoredCheckpoint, other: checkpoint.StoredCheckpoint) -> None:
    files = [load_file(f"{stored.path}/model/model.safetensors") for stored in (one, other)]
    assert files[0].keys() == files[1].keys()
    for key, value in files[0].items():
        assert value.tobytes() == files[1][key].tobytes(), key


def runs_of(client: mlflow.MlflowClient, name: str) -> list[Run]:
    """The tracked runs of a training."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found: list[Run] = client.search_runs(experiments, f"tags.`training.run` = '{name}'")
    return found


def curve(folder: Path, name: str, metric: str, database: str = "") -> dict[int, float]:
    """Values of a metric by step, of a training that is one run with one line a step.

    Args:
        database: where it is recorded; "" where the trainings in ``folder`` are by themselves.
    """
    # Not mlflow.set_tracking_uri: that is an environment variable, which the jobs of later drills would obey.
    client = mlflow.MlflowClient(database or f"sqlite:///{folder}/runs/mlflow.db")
    (run,) = runs_of(client, name)
    lines = client.get_metric_history(run.info.run_id, metric)
    steps = [line.step for line in lines]
    assert steps == sorted(set(steps)), f"{metric} has two lines for one step"
    return {line.step: line.value for line in lines}


def assert_as_calm(folder: Path, name: str) -> None:
    """It was interrupted, and yet saw each sample once an epoch, and its weights and curves are those of ``CALM``."""
    assert audit(ledger_of(folder, name), SAMPLES, EPOCHS).faults == []
    # Steps need not be done twice: the fault may come between a checkpoint and the next step.
    assert len(list(ledger_of(folder, name).glob("rank0-*.jsonl"))) > 1, "nothing was interrupted"
    assert_equal_weights(final(folder, name), final(folder, CALM))
    for metric in ("train/loss", "val/accuracy"):
        assert curve(folder, name, metric) == curve(folder, CALM, metric)
