"""A storage folder at another place leads to its own files."""

from __future__ import annotations

import logging
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
from mlflow.tracking._tracking_service import utils as mlflow_utils

from pipelines.registry.registry import Registry
from pipelines.registry.version_score import VersionScore
from pipelines.tracking.address import TrackingConfig
from pipelines.tracking.store import open_store
from pipelines.tracking.tracker import Tracker
from tests.pipelines.registry.conftest import FAST, asked, save_model

SCORE = VersionScore("accuracy", 0.9, 0.5, "ab" * 32, "val", 100)


@pytest.fixture
def begun(storage: str, tracking: TrackingConfig) -> Path:
    """A storage folder with a recorded run."""
    with Tracker.open(tracking, storage, "run-1") as tracker:
        tracker.log_params({"lr": 0.1})
    return Path(storage)


def addresses(storage: Path, tracking: TrackingConfig) -> tuple[str, str]:
    """Where a storage folder's database says that files of its experiment and of its run are."""
    client = open_store(tracking, str(storage))
    experiment = client.get_experiment_by_name("vlmodel")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return experiment.artifact_location, run.info.artifact_uri


def test_a_copy_is_used_and_the_original_left_alone(
    begun: Path,
    tracking: TrackingConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # MLflow remembers where a run's files are for as long as a process lives; the copy is opened by another one.
    monkeypatch.setattr(mlflow_utils, "_artifact_repos_cache", OrderedDict())
    copy = tmp_path / "other place"
    shutil.copytree(begun, copy)
    before = sorted(begun.rglob("*"))
    with caplog.at_level(logging.WARNING), Tracker.open(tracking, str(copy), "run-1") as tracker:
        tracker.log_text("hello", "note.txt")
    (note,) = copy.rglob("note.txt")
    assert note.read_text() == "hello"
    assert sorted(begun.rglob("*")) == before
    assert f"lay in {begun.as_uri()}/mlartifacts and are in {copy.as_uri()}/mlartifacts now" in caplog.text
    assert addresses(copy, tracking)[0] == f"{copy.as_uri()}/mlartifacts"
    assert addresses(begun, tracking)[0] == f"{begun.as_uri()}/mlartifacts"
    caplog.clear()
    addresses(copy, tracking)
    assert caplog.text == ""


def test_the_champion_of_a_moved_folder_is_found(begun: Path, tracking: TrackingConfig, tmp_path: Path) -> None:
    client = open_store(tracking, str(begun))
    (run,) = client.search_runs([client.get_experiment_by_name("vlmodel").experiment_id])  # type: ignore[union-attr]
    registry = Registry.open(tracking, str(begun), FAST)
    registry.log_model(run.info.run_id, save_model(tmp_path / "model", 0), asked(), SCORE)
    registry.promote("1", "first", over=None)
    shutil.rmtree(begun / "models")
    moved = begun.rename(tmp_path / "moved")
    champion = Registry.open(tracking, str(moved), FAST).champion()
    assert champion.folder.is_relative_to(moved)
    assert not begun.exists()


def test_files_of_an_experiment_of_another_storage_folder_stay_its_own(
    begun: Path, tracking: TrackingConfig, tmp_path: Path
) -> None:
    here = TrackingConfig(uri=f"sqlite:///{begun}/mlflow.db", experiment="elsewhere", system_metrics=False)
    with Tracker.open(here, str(tmp_path / "far"), "run-2") as tracker:
        tracker.log_params({"lr": 0.2})
    experiment = open_store(tracking, str(begun)).get_experiment_by_name("elsewhere")
    assert experiment is not None
    assert experiment.artifact_location == f"{tmp_path.as_uri()}/far/mlartifacts"


def test_the_folder_under_another_name_is_no_other_place(begun: Path, tracking: TrackingConfig, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(begun)
    before = addresses(begun, tracking)
    assert addresses(tmp_path / "link", tracking) == before
    assert addresses(begun, tracking) == before


def test_relocation_ignores_folders_with_a_common_prefix(begun: Path, tracking: TrackingConfig, tmp_path: Path) -> None:
    beside = tmp_path / "runs" / "mlartifacts2"
    client = open_store(tracking, str(begun))
    client.create_experiment("beside", artifact_location=beside.as_uri())
    moved = begun.rename(tmp_path / "moved")
    experiment = open_store(tracking, str(moved)).get_experiment_by_name("beside")
    assert experiment is not None
    assert experiment.artifact_location == beside.as_uri()
    assert addresses(moved, tracking)[0] == f"{moved.as_uri()}/mlartifacts"
