"""Sets what MLflow's page shows of an experiment when it is opened: a list of trainings, with columns of their
metrics.
"""

from __future__ import annotations

import json

_VIEW = "raylm"
_METRICS = (
    "val/accuracy", "val/loss", "val/floor_question_only", "test/accuracy", "test/floor_question_only", "train/loss",
    "speed/images_per_s",
)  # fmt: skip
_SHOWN = ["attributes.`Duration`", "attributes.`Models`", *(f"metrics.`{name}`" for name in _METRICS)]

TAGS = {
    # Else the page asks what the experiment is, and may show the view of language models.
    "mlflow.experimentKind": "custom_model_development",
    # A view as its page's button "Share" stores one.
    f"mlflow.sharedViewState.{_VIEW}": json.dumps({"selectedColumns": _SHOWN}),
}
"""Tags of a new experiment."""


def experiment_page_address(server: str, experiment_id: str) -> str:
    """Return the address of an experiment's page on a server, with the columns of ``TAGS``."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={_VIEW}"
