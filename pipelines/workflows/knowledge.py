"""The workflow of the job ``knowledge``."""

from __future__ import annotations

from contextlib import nullcontext

from pipelines.knowledge.build import FactStoreBuildResult, build_fact_store
from pipelines.report.progress import Progress
from pipelines.workflows.cluster import connected_to_cluster
from pipelines.workflows.workspace import Workspace


def run(work: Workspace) -> FactStoreBuildResult:
    """Add the facts of ``knowledge.source`` to the store ``knowledge.store``."""
    config = work.config.knowledge
    # Ray encodes; names alone need none.
    cluster = connected_to_cluster(work.config.cluster) if config.encoder else nullcontext()
    with cluster, Progress("knowledge", "fact") as progress:
        built = build_fact_store(config, progress)
    print(f"knowledge {config.store}: {built.describe()}", flush=True)
    return built
