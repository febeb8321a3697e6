from __future__ import annotations

import json
from pathlib import Path

from pipelines.tracking.address import TrackingConfig
from pipelines.tracking.page import experiment_page_address
from pipelines.tracking.store import connect_to_store
from pipelines.tracking.tracker import Tracker


def test_a_new_experiment_opens_as_trainings_with_columns_of_figures(tmp_path: Path) -> None:
    with Tracker.open(TrackingConfig(experiment="pets"), str(tmp_path), "run"):
        pass
    experiment = connect_to_store(f"sqlite:///{tmp_path}/mlflow.db").get_experiment_by_name("pets")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    address = experiment_page_address("http://127.0.0.1:5000/", experiment.experiment_id)
    page, _, key = address.partition("?viewStateShareKey=")
    assert page == f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs"
    assert "metrics.`val/accuracy`" in json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])["selectedColumns"]
