"""A service of tiny registered models for the drills to disturb, deployed as the jobs deploy it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray
from ray import serve as ray_serve

from pipelines.registry.registry import Registry
from pipelines.registry.version_score import VersionScore
from pipelines.registry.versions import LocalModel
from pipelines.serve.client import Client
from pipelines.serve.deployment import deploy
from pipelines.serve.deployment.address import service_address_of
from pipelines.tracking.tracker import Tracker
from pipelines.workflows import promote, serve
from pipelines.workflows.config import JobConfig
from pipelines.workflows.workspace import Workspace
from tests.pipelines.registry.conftest import asked, save_model
from tests.pipelines.serve.deployment.test_deploy import free_port
from vlmodel.config import parse_config
from vlmodel.operations.ask import VQAResponse

SCORE = VersionScore(metric="accuracy", value=0.9, floor=0.67, index_hash="ab" * 32, split="val", count=1000)


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray cluster of this process's own, with room for two replicas and the two that take their place."""
    ray.init(
        address="local", num_cpus=4, object_store_memory=150 << 20, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


class Service:
    """A registry in ``folder``, and the service that its champion is deployed to.

    Args:
        folder: for all files.
        save: saves a model of random weights, given a folder and a seed.
        settings: of ``serve``, over those that suit a small machine.
    """

    def __init__(self, folder: Path, save: Callable[[Path, int], Path] = save_model, **settings: object) -> None:
        self._save = save
        small = {"port": free_port(), "num_cpus": 0.5, "model_threads": 1, "shutdown_timeout_s": 5.0}
        tree = {
            "storage": str(folder / "runs"),
            "tracking": {"system_metrics": False},
            "registry": {"smoke_test": False},
            "serve": {**small, **settings},
        }
        self.config = parse_config(JobConfig, tree)
        self.address = service_address_of(self.config.serve)
        self._folder = folder
        (folder / "runs").mkdir()

    @property
    def registry(self) -> Registry:
        return Registry.open(self.config.tracking, self.config.storage, self.config.registry)

    @property
    def champion(self) -> str | None:
        model = self.registry.find()
        return model.version if model else None

    def register(self, seed: int) -> str:
        """Register a model of random weights and return its version."""
        with Tracker.open(self.config.tracking, self.config.storage, f"run-{seed}") as tracker:
            pass
        checkpoint = self._save(self._folder / f"model-{seed}", seed)
        return self.registry.log_model(tracker.run_id, checkpoint, asked(), SCORE).version

    def promote(self, version: str) -> LocalModel:
        return self.registry.promote(version, "a drill", over=self.champion)

    def roll_back(self) -> None:
        """What ``python -m jobs.promote --rollback`` does."""
        rollback = self.config.registry.model_copy(update={"rollback": True})
        promote.run(Workspace(self.config).with_changed_settings(registry=rollback))

    def deploy(self) -> None:
        """What ``python -m jobs.serve`` does on a running cluster."""
        assert serve.deploy_model(Workspace(self.config)) == self.address

    def ask(self, image: bytes, question: str) -> VQAResponse:
        with Client(self.address) as client:
            return client.ask(image, [question])

    def is_whole(self) -> bool:
        """Whether all replicas run, as Serve sees it and as processes."""
        expected = self.config.serve.replicas
        app = ray_serve.status().applications[deploy.APP_NAME]
        states = [deployment.replica_states for deployment in app.deployments.values()]
        return app.status == "RUNNING" and states == [{"RUNNING": expected}] and len(replicas()) == expected

    def message(self) -> str:
        """What Serve says about the replicas."""
        app = ray_serve.status().applications[deploy.APP_NAME]
        return " ".join(deployment.message for deployment in app.deployments.values())


def replicas(app: str = deploy.APP_NAME) -> set[int]:
    """Process ids of an application's replicas on this process's own cluster."""
    pids = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if " ".join(process.cmdline()).startswith(f"ray::ServeReplica:{app}:"):
                pids.add(process.pid)
    return pids


def seconds_until(condition: Callable[[], bool], at_most_s: float) -> float:
    """Wait for it and return how long that took."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started >= at_most_s:
            # Where the service runs in a cluster of somebody else's, asking would start one here.
            app = ray_serve.status().applications.get(deploy.APP_NAME) if ray.is_initialized() else "unknown"
            raise AssertionError(f"not within {at_most_s:g} s: the service is {app}, its replicas {replicas()}")
        time.sleep(0.05)
    return time.monotonic() - started


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
