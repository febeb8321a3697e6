"""Our service with its defaults, on a cluster as a job starts it. Arguments: FOLDER PORT [INGRESS]."""

from __future__ import annotations

import sys
import threading

from pipelines.serve.config import ServeConfig
from pipelines.serve.deployment import deploy
from pipelines.workflows.cluster import ClusterConfig, connected_to_cluster
from tests.bench.servers.common import MAX_BATCH
from vlmodel.config import parse_config

if __name__ == "__main__":
    folder, port, ingress = [*sys.argv[1:], "auto"][:3]
    config = parse_config(ServeConfig, {"port": int(port), "max_batch_size": MAX_BATCH, "ingress": ingress})
    with connected_to_cluster(ClusterConfig()):
        deploy.deploy_service(config, folder)
        threading.Event().wait()
