"""Our service with its defaults, on a cluster as a job starts it. Arguments: FOLDER PORT."""

from __future__ import annotations

import sys
import threading

from jobs.cluster import ClusterConfig, connected
from pipelines.serve import deploy
from pipelines.serve.config import ServeConfig
from tests.bench.servers.common import MAX_BATCH

if __name__ == "__main__":
    folder, port = sys.argv[1:]
    with connected(ClusterConfig()):
        deploy.start(ServeConfig(port=int(port), max_batch_size=MAX_BATCH), folder)
        threading.Event().wait()
