"""Drill: a node of a cluster dies at once, with all its processes, while a training runs on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.faults.trainings import assert_as_calm, finish, ledger_of, start, worker_at


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, for the job's driver, and two nodes of which each can hold the whole training."""
    limits = {"object_store_memory": 150 << 20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **limits})
    try:
        for _ in range(2):
            made.add_node(num_cpus=6, **limits)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


def kill(raylet: psutil.Process) -> None:
    """As when the machine loses its power: the node's daemon and all that it had started."""
    for process in (raylet, *raylet.children(recursive=True)):
        process.kill()


def test_a_killed_node_costs_nothing(uninterrupted: Path, cluster: Cluster) -> None:
    folder, name = uninterrupted, "node"
    training = start(name, folder, f"cluster.address={cluster.address}")
    worker = psutil.Process(worker_at(training, ledger_of(folder, name), 0, 18))
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    (raylet,) = (parent for parent in worker.parents() if parent.pid in raylets)
    kill(raylet)
    finish(training, folder, name)
    assert_as_calm(folder, name)
