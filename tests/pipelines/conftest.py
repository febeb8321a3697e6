"""A tracking store for each test, without the seconds that MLflow takes to make a database."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.tracking.address import TrackingConfig
from pipelines.tracking.store import connect_to_store


@pytest.fixture(scope="session")
def empty_tracking_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "mlflow.db"
    connect_to_store(f"sqlite:///{file}")
    return file


@pytest.fixture
def storage(tmp_path: Path, empty_tracking_database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A storage folder with an empty tracking database at the default place."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(empty_tracking_database, folder / "mlflow.db")
    return str(folder)


@pytest.fixture
def tracking() -> TrackingConfig:
    return TrackingConfig(system_metrics=False)
