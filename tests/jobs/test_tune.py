"""A search by Ray Tune: what it says in the end, what it leaves behind, and that it continues."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from jobs.job import main
from pipelines.search.config import TuneConfig
from pipelines.search.tuning import to_plain_settings
from pipelines.workflows import tune
from pipelines.workflows.config import JobConfig
from tests.jobs.test_pipeline import DEMO, setting
from vlmodel.config import load_config

Job = Callable[..., subprocess.CompletedProcess[str]]


def test_the_best_settings_are_valid_overrides() -> None:
    settings = {"model.fusion.kind": "concat", "train.optimizer.head_lr": 1.5e-05, "train.optimizer.betas": [0.9, 0.95]}
    config = load_config(JobConfig, None, shlex.split(tune.format_as_command_line_overrides(settings)))
    assert config.model.fusion.kind == "concat"
    assert config.train.optimizer.head_lr == 1.5e-05
    assert config.train.optimizer.betas == [0.9, 0.95]


def test_samples_are_plain_and_short() -> None:
    import numpy as np

    given = {"a": np.float64(0.00123456), "b": np.int64(3), "c": "x", "d": True, "e": [1, 2]}
    shown = to_plain_settings(given)
    assert shown == {"a": 0.001235, "b": 3, "c": "x", "d": True, "e": [1, 2]}
    assert type(shown["b"]) is int
    assert type(shown["d"]) is bool


@pytest.mark.parametrize(
    ("space", "says", "status"),
    [
        ("{}", "tune.space is empty", 1),
        ('{"train.epoch"={choice=[1]}}', "unknown key 'train.epoch'; did you mean 'train.epochs'?", 1),
        ('{"train.epochs"={choice=[1, 2]}}', "'train.epochs' is how long a trial may last", 2),
        ('{"train.batch"={uniform=[1.0, 2.5]}}', "train.batch = 1.0", 1),
        (
            '{"model.task.kind"={choice=["vqa", "answer"]}}',
            "'task-answer' by exp(-val loss); make it one search",
            1,
        ),
    ],
)
def test_a_wrong_space_is_refused_before_anything_runs(
    space: str, says: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("tune", [f"tune.space={space}", f"storage={tmp_path}"]) == status
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_search_that_continues_keeps_its_space() -> None:
    volatile = tune.changeable_settings(JobConfig())
    fixed = ("tune.space", "tune.samples", "train.epochs", "model")
    assert not [key for key in fixed for may in volatile if f"{key}.".startswith(f"{may}.")]
    assert "tune.concurrent" in volatile


def test_the_space_is_in_the_terms_of_tune() -> None:
    from pipelines.search.tuning import to_tune_space

    made = to_tune_space(
        TuneConfig(space={"a": {"loguniform": [1e-4, 1e-2]}, "b": {"choice": [3, 4]}, "c": {"randint": [0, 2]}})
    )
    assert all(1e-4 <= made["a"].sample() <= 1e-2 for _ in range(20))
    assert {made["b"].sample() for _ in range(50)} == {3, 4}
    assert {made["c"].sample() for _ in range(50)} == {0, 1}


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_a_search_in_earnest(job: Job, small: list[str], indexed: None) -> None:
    storage = Path(setting(small, "storage"))
    # The first sample learns and the second cannot, so that it is stopped after its first epoch.
    arguments = [
        *DEMO, *small, "name=search", "train.workers=1", "tune.samples=2", "tune.reduction=2",
        'tune.space={"train.optimizer.head_lr"={choice=[1e-3, 1e-9, 5e-3]}}', "train.optimizer.backbone_lr=0.0",
    ]  # fmt: skip
    done = job("tune", *arguments)
    assert re.search(r"best: trial 1, val accuracy 0\.\d{4}\ntrain.optimizer.head_lr=0.005", done.stdout)
    with (storage / "search" / "tuning.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["optimizer.head_lr"], row["epochs"], row["status"]) for row in rows] == [
        ("1", "0.005", "2", "finished"), ("2", "1e-09", "1", "stopped")
    ]  # fmt: skip
    assert (storage / "search" / "tuning.png").stat().st_size > 1000

    mlflow.set_tracking_uri(f"sqlite:///{storage}/mlflow.db")
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    runs = {run.info.run_name: run for run in found}
    for child in (runs["search-t001"], runs["search-t002"]):
        assert child.data.tags["mlflow.parentRunId"] == runs["search"].info.run_id
        assert child.info.status == "FINISHED"
    assert runs["search-t002"].data.tags["search.status"] == "stopped"

    assert done.stdout.count("steps of") == 2
    again = job("tune", *arguments)
    assert "steps of" not in again.stdout
    assert "best: trial 1" in again.stdout
