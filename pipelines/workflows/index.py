"""What the job ``index`` does."""

from __future__ import annotations

from pipelines.data.index.index import build_index
from pipelines.data.index.survey import describe_shapes
from pipelines.report.progress import ShardProgress
from pipelines.workflows.cluster import connected
from pipelines.workflows.config import JobConfig


def run(config: JobConfig) -> None:
    """Build or update the index of ``data.tars``, and of every source of ``data.mix``."""
    with connected(config.cluster):
        for tars, members in config.data.sets().items():
            settings = config.data.index.model_copy(update={"members": members})
            with ShardProgress("index") as progress:
                index = build_index(tars, settings, report_progress=progress)
            print("\n".join([index.report(), *describe_shapes(index.survey(), config.processor.resize)]), flush=True)
            if config.data.index.report:
                print(f"shown in {index.folder.path('_index/quarantine.html')}", flush=True)
