"""Serve the champion over HTTP. On a cluster of its own the job runs until Ctrl-C; on a running cluster it deploys, or
updates what is deployed, and leaves the service up.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jobs import runs
from jobs.cluster import connected
from jobs.config import JobConfig
from jobs.job import main
from pipelines.registry.registry import Registry
from pipelines.serve import deploy


def run(config: JobConfig) -> None:
    """Deploy the champion and, on a cluster of this job's own, wait."""
    with connected(config.cluster) as own:
        if not own:
            print(f"serving at {start(config)}", flush=True)
            return
        with serving(config) as address:
            print(f"serving at {address} (page /, API /docs); Ctrl-C stops it", flush=True)
            threading.Event().wait()


def start(config: JobConfig) -> str:
    """Deploy the champion and return the service's address."""
    model = Registry.open(config.tracking, runs.storage(config), config.registry).champion()
    return deploy.start(
        config.serve, model.folder, model.name, model.version, model.digest, lambda line: print(line, flush=True)
    )


@contextmanager
def serving(config: JobConfig) -> Iterator[str]:
    """Serve while the block runs."""
    address = start(config)
    try:
        yield address
    finally:
        deploy.stop()


if __name__ == "__main__":
    sys.exit(main(run, "serve"))
