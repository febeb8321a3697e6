"""Set up Ray's torch backend without torch in the job's process, and in all workers' processes at once.

Ray's ``TorchTrainer`` imports torch in the job's process, then in its controller, and only then lets workers begin:
each waits for the one before. Here the workers import what they run as soon as they exist, and the controller imports
torch beside them; the job's process needs none. The rest is Ray's own (``ray_private.set_up_process_group``).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.train.backend import Backend, BackendConfig


class TorchBackendConfig(BackendConfig):
    """Stand in for Ray's ``TorchConfig``: nccl with GPUs, gloo without."""

    @property
    def backend_cls(self) -> type[TorchBackend]:
        return TorchBackend

    @property
    def train_func_context(self) -> Any:
        return chosen_device

    @property
    def framework(self) -> Any:
        from pipelines.train import ray_private

        return ray_private.TORCH


class TorchBackend(Backend):
    """Sets up the process group of torch in the workers; runs in the controller."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        # Not waited for: a worker does one thing after the other, and an import that fails, fails again.
        worker_group.execute_async(import_worker_program)
        from pipelines.train import ray_private

        ray_private.set_up_process_group(worker_group)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        from pipelines.train import ray_private

        ray_private.shut_down_process_group(worker_group)


def import_worker_program() -> None:
    """Import what a worker will run."""
    importlib.import_module("pipelines.train.worker")


@contextmanager
def chosen_device() -> Iterator[None]:
    """Make the worker's GPU the current device while its program runs, as ``TorchTrainer`` does."""
    from ray.train.torch.config import TorchConfig

    with TorchConfig().train_func_context():
        yield
