"""What the job ``prepare`` does."""

from __future__ import annotations

from pipelines.data.prepare.files import REPORT
from pipelines.data.prepare.run import prepare
from pipelines.data.prepare.summary import Summary
from pipelines.workflows.cluster import connected
from pipelines.workflows.workspace import Workspace


def run(work: Workspace) -> Summary:
    """Prepare the data; does nothing where that was done."""
    with connected(work.config.cluster):
        summary = prepare(work.config.data.tars, work.config.prepare, work.config.data.index)
    print(summary)
    print(f"examples of what was dropped: {summary.out}/{REPORT}", flush=True)
    return summary
