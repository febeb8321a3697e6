"""The workflow of the job ``prepare``."""

from __future__ import annotations

from pipelines.data.prepare.files import REPORT
from pipelines.data.prepare.run import prepare_tars
from pipelines.data.prepare.summary import PreparationSummary
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.workspace import Workspace


def run(work: Workspace) -> PreparationSummary:
    """Prepare the data set; does nothing if that was done."""
    with connected_to_cluster(work.config.cluster):
        summary = prepare_tars(work.config.data.tars, work.config.prepare, work.config.data.index)
    print(summary)
    print(f"examples of what was dropped: {summary.out}/{REPORT}", flush=True)
    return summary
