"""The workflow of the job ``index``."""

from __future__ import annotations

from pipelines.data.index.build import build_index, require_tars
from pipelines.data.index.statistics import describe_shapes
from pipelines.report.progress import Progress
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace


def _resize_setting(config: JobConfig) -> str:
    """Return how images become square; "" if only the files of the weights say it."""
    if config.processor.resize:
        return config.processor.resize
    trained = config.model.vision.preprocessing_if_known()
    return "" if trained is None else str(trained.resize)


def run(work: Workspace) -> None:
    """Build or update the index of ``data.tars``, and of every source of ``data.mix``."""
    sets = work.config.data.inputs_by_tars()
    for tars in sets:
        require_tars(tars)  # before a cluster is started
    with connected_to_cluster(work.config.cluster):
        for tars, inputs in sets.items():
            settings = work.config.data.index.model_copy(update={"inputs": inputs})
            with Progress("index") as progress:
                index = build_index(tars, settings, report_progress=progress)
            shapes = describe_shapes(index.statistics(), _resize_setting(work.config))
            print("\n".join([index.report(), *shapes]), flush=True)
            if work.config.data.index.report:
                print(f"shown in {index.folder.path('_index/quarantine.html')}", flush=True)
