"""A grid of trainings: by itself with trainings that are only pretended, and once in earnest."""

from __future__ import annotations

import contextlib
import csv
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from pipelines.search.errors import SearchError
from pipelines.search.results import TrainingResult
from pipelines.tracking.tracker import NullTracker
from pipelines.workflows import ablate, train, trials
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from tests.jobs.test_pipeline import DEMO, setting
from vlmodel.config import ConfigError, load_config

Job = Callable[..., subprocess.CompletedProcess[str]]


class Pretended:
    """Trainings that take no time; ``broken`` names those that fail, and how."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained: list[str] = []
        self.broken: dict[str, BaseException] = {}

    def fit(self, work: Workspace, *_: Any, **__: Any) -> None:
        self.trained.append(work.config.name.removeprefix("grid-"))
        if error := self.broken.get(self.trained[-1]):
            raise error

    def run(self, *overrides: str) -> list[dict[str, Any]]:
        grid = 'ablate.grid={"model.fusion.kind"=["concat","transformer"],"train.batch"=[8,16]}'
        return ablate.run(
            Workspace(load_config(JobConfig, None, ["name=grid", f"storage={self.folder}", grid, *overrides]))
        )


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    these = Pretended(tmp_path)
    index: Any = SimpleNamespace(counts=lambda: {"val": 1}, hash="h", quarantine_counts=dict)
    monkeypatch.setattr(Workspace, "track", lambda *_, **__: NullTracker())
    monkeypatch.setattr(ablate, "connected_to_cluster", lambda _: contextlib.nullcontext(True))
    monkeypatch.setattr(train, "open_index", lambda _: index)
    monkeypatch.setattr(train, "open_checked_index", lambda _: index)
    monkeypatch.setattr(trials, "fit", these.fit)
    monkeypatch.setattr(
        trials, "result_of_run", lambda run, *_: TrainingResult("finished", score=0.5, epochs=1, parameters=9)
    )
    return these


def test_every_cell_is_trained_once_with_every_seed(pretended: Pretended) -> None:
    rows = pretended.run("ablate.seeds=[3,4]")
    assert len(pretended.trained) == 8
    assert "fusion-concat-train.batch-8-s3" in pretended.trained
    assert [row["train.batch"] for row in rows] == [8, 16, 8, 16]
    again = pretended.run("ablate.seeds=[3,4]")
    assert again == rows
    assert len(pretended.trained) == 8


def test_a_longer_grid_trains_what_is_new(pretended: Pretended) -> None:
    pretended.run()
    pretended.trained.clear()
    pretended.run("ablate.seeds=[0,1]")
    assert {name[-2:] for name in pretended.trained} == {"s1"}
    assert len(pretended.trained) == 4


def test_a_failed_cell_stops_no_other_and_is_tried_again(
    pretended: Pretended, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = "fusion-concat-train.batch-16-s0"
    pretended.broken[failing] = RuntimeError("boom")
    with pytest.raises(SearchError, match=r"1 of 4 trainings failed(?s:.*)fusion-concat-train.batch-16 seed 0.*boom"):
        pretended.run()
    assert len(pretended.trained) == 4
    assert "failed: RuntimeError: boom" in capsys.readouterr().out
    pretended.trained.clear()
    pretended.broken.clear()
    rows = pretended.run()
    assert pretended.trained == [failing]
    assert all(row["status"] == "finished" for row in rows)


def test_a_cell_that_does_not_fit_the_data_is_refused(pretended: Pretended) -> None:
    pretended.broken["fusion-concat-train.batch-8-s0"] = ConfigError("image too small")
    assert pretended.run()[0]["status"] == "refused: image too small"


def test_an_interrupted_cell_is_not_done(pretended: Pretended) -> None:
    pretended.broken["fusion-concat-train.batch-8-s0"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        pretended.run()
    assert len(pretended.trained) == 1
    pretended.broken.clear()
    pretended.run()
    assert len(pretended.trained) == 5


def test_a_wrong_key_is_refused_before_anything_runs(pretended: Pretended) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'train\.epoch'; did you mean 'train\.epochs'\?"):
        pretended.run('ablate.grid={"train.epoch"=[1]}')
    assert not pretended.trained
    assert not list(pretended.folder.iterdir())


def test_cells_with_different_metrics_are_refused_before_training(pretended: Pretended) -> None:
    says = (
        r"ablate\.grid: .*'task-vqa-.*8' by val accuracy and 'task-answer-.*8' by exp\(-val loss\); make it one "
        "search for each figure"
    )
    with pytest.raises(ConfigError, match=says):
        pretended.run('ablate.grid={"model.task.kind"=["vqa","answer"],"train.batch"=[8]}')
    assert not pretended.trained
    assert not list(pretended.folder.iterdir())


def test_a_grid_is_judged_by_the_figure_of_its_cells(pretended: Pretended) -> None:
    # The base chooses an answer; both cells of the grid write.
    rows = pretended.run('ablate.grid={"model.task.kind"=["answer","caption"]}')
    assert [row["exp(-val loss)"] for row in rows] == [0.5, 0.5]
    assert not any("val accuracy" in row for row in rows)


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_a_grid_in_earnest(job: Job, small: list[str], indexed: None) -> None:
    storage = Path(setting(small, "storage"))
    arguments = [
        *DEMO, *small, "name=grid", "train.epochs=1", "train.workers=1",
        'ablate.grid={"model.fusion.kind"=["concat","transformer"],"model.fusion.rounds"=[1]}',
    ]  # fmt: skip
    first = job("ablate", *arguments)
    assert "step 6/6" in first.stderr
    with (storage / "grid" / "ablation.csv").open() as file:
        refused, trained = csv.DictReader(file)
    assert refused["status"].startswith("refused: unknown key 'model.fusion.rounds'")
    assert trained["status"] == "finished"
    assert 0 < float(trained["val accuracy"]) <= 1
    assert float(trained["images/s"]) > 0
    assert (storage / "grid" / "ablation.png").stat().st_size > 1000

    mlflow.set_tracking_uri(f"sqlite:///{storage}/mlflow.db")
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    runs = {run.info.run_name: run for run in found}
    parent, child = runs["grid"], runs["grid-fusion-transformer-fusion.rounds-1-s0"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {parent.info.status, child.info.status} == {"FINISHED"}
    client = mlflow.MlflowClient()
    assert {"ablation.csv", "ablation.md", "pictures"} <= {f.path for f in client.list_artifacts(parent.info.run_id)}
    # Nothing of a grid is registered, and what is asked about the test split is asked elsewhere.
    assert child.info.run_id not in {version.run_id for version in client.search_model_versions()}
    assert not any(name.startswith("test/") for name in child.data.metrics)

    again = job("ablate", *arguments)
    assert "images/s" not in again.stderr
    assert "1 of 1" in again.stdout
