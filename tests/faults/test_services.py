"""Drill: training, registering, promoting and rolling back against MLflow with PostgreSQL and an S3-compatible store,
which infra/services.sh runs, stops and starts again.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from pipelines.data.index.index import Index
from pipelines.registry.config import RegistryConfig
from pipelines.registry.registry import Registry
from pipelines.registry.versions import LocalModel
from pipelines.tracking.address import TrackingError
from pipelines.tracking.tracker import Tracker
from pipelines.workflows import promote
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from tests.faults.services import SCORE
from tests.faults.trainings import command, places, prepare, runs_of
from tests.infra.test_cluster_script import free_ports
from tests.infra.test_services import missing, services
from tests.jobs.conftest import ROOT
from tests.pipelines.registry.conftest import QUESTION, asked, picture, save_model
from vlmodel.config import parse_config
from vlmodel.inference import Predictor
from vlmodel.processor import Example


class Services:
    """MLflow, its database and its store in ``folder``.

    Attributes:
        tracking: the address of MLflow.
    """

    def __init__(self, folder: Path) -> None:
        port, s3_port, prometheus_port = free_ports(3)
        self.folder, self.tracking = folder, f"http://127.0.0.1:{port}"
        self._options = ["--state", f"{folder}/state", "--python", sys.executable, "--port", str(port)]
        self._options += ["--s3-port", str(s3_port), "--prometheus-port", str(prometheus_port)]

    def start(self) -> None:
        started = services("start", *self._options)
        assert started.returncode == 0, started.stderr

    def stop(self) -> None:
        stopped = services("stop", *self._options)
        assert stopped.returncode == 0, stopped.stderr

    def stored(self) -> dict[str, str]:
        """Hash of each object in the store."""
        bucket = self.folder / "state" / "objects" / "mlflow"
        files = sorted(file for file in bucket.rglob("*") if file.is_file())
        return {str(file.relative_to(bucket)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def stack() -> Iterator[Services]:
    if lacking := missing():
        pytest.skip(f"needs {lacking}; see infra/services.sh --help")
    # PostgreSQL's socket lies below, whose path is limited; and where root calls, another user goes through it.
    with tempfile.TemporaryDirectory(prefix="sv-") as short:
        Path(short).chmod(0o711)
        running = Services(Path(short))
        running.start()
        try:
            yield running
        finally:
            running.stop()


def registry_of(config: JobConfig, cache: Path) -> Registry:
    """The registry with no local copy of any model, so that what it gives comes from the store."""
    return Registry.open(config.tracking, config.storage, RegistryConfig(cache=str(cache), smoke_test=False))


def answers_of(model: LocalModel) -> list[tuple[str, float]]:
    examples = [Example({"image": picture(seed)}, (QUESTION,)) for seed in range(4)]
    return [answer for (one,) in Predictor.from_pretrained(model.folder).predict(examples, 3) for answer in one.answers]


def recorded(stack: Services) -> tuple[object, ...]:
    """What MLflow knows of the training and of the versions."""
    client = mlflow.MlflowClient(stack.tracking)
    (run,) = runs_of(client, "first")
    versions = client.search_model_versions("name = 'vlmodel'")
    return (
        run.info.status, run.data.metrics, run.data.params, run.data.tags,
        [(line.step, line.value) for line in client.get_metric_history(run.info.run_id, "train/loss")],
        sorted((version.version, version.source, tuple(sorted(version.tags.items()))) for version in versions),
        client.get_registered_model("vlmodel").aliases,
    )  # fmt: skip


def test_models_outlive_restarts_of_their_services(stack: Services, tmp_path: Path) -> None:
    config = parse_config(
        JobConfig,
        {
            "storage": str(tmp_path / "runs"),
            "tracking": {"uri": stack.tracking, "system_metrics": False, "model_name": "vlmodel"},
            "registry": {"smoke_test": False},
        },
    )
    prepare(tmp_path)
    for job in ("train", "promote"):
        done = subprocess.run(
            command(job, "name=first", *places(tmp_path), f"tracking.uri={stack.tracking}"),
            cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert "vlmodel version 1 is the champion" in done.stdout
    assert not list((tmp_path / "runs").rglob("mlflow.db")), "the database is the server's"
    assert not list((tmp_path / "runs").rglob("mlartifacts")), "files are in the store"
    first = registry_of(config, tmp_path / "fresh").champion()
    assert first.version == "1"
    assert first.score is not None
    assert first.score.index_hash == Index.open(str(tmp_path / "data")).hash
    weights = hashlib.sha256((first.folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights in stack.stored().values()

    with Tracker.open(config.tracking, config.storage, "second") as tracker:
        pass
    registry = registry_of(config, tmp_path / "models")
    second = registry.log_model(tracker.run_id, save_model(tmp_path / "second", 2), asked(), SCORE)
    registry.promote(second.version, "a drill", over=first.version)
    before, objects = recorded(stack), stack.stored()
    answers = [answers_of(model) for model in (first, registry.champion())]

    stack.stop()
    with pytest.raises(TrackingError, match=r"cannot be reached: .* start the server"):
        registry_of(config, tmp_path / "none")
    stack.start()

    assert recorded(stack) == before
    assert stack.stored() == objects
    champion = registry_of(config, tmp_path / "again").champion()
    assert champion.version == second.version
    assert answers_of(champion) == answers[1]
    promote.run(Workspace(config).with_changed_settings(registry=config.registry.model_copy(update={"rollback": True})))
    champion = registry_of(config, tmp_path / "back").champion()
    assert champion.version == first.version
    assert answers_of(champion) == answers[0] != answers[1]
    assert registry.version(second.version).rollback_reason
