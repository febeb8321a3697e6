"""Collects all uses of Ray Train's private modules and names; a new version of Ray must be checked here."""

from __future__ import annotations

import logging
import os
from typing import Any

from ray.train import CheckpointConfig
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import HEALTH_CHECK_INTERVAL_S_ENV_VAR, WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.util import TrainingFramework
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_ANSWER_TIMEOUT_S = "45"

log = logging.getLogger(__name__)

LOST_WORKER = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
"""Errors of a worker that died or hung."""


TORCH = TrainingFramework.TORCH


class Trainer(DataParallelTrainer):
    """A trainer without two features of Ray Train; its backend brings torch (``torch_backend``).

    The actor that frees a dead controller's resources polls the State API every second. It logs errors if no dashboard
    runs, and raises if two clusters run on the machine. The resources are freed when this driver ends, which it does
    when its controller is lost.

    The handler of Ctrl-C stays installed after the training, and then ends the driver only at the third Ctrl-C.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: object) -> None:
        """Keep the signal handler of the driver."""


def set_up_process_group(worker_group: Any) -> None:
    """Join the workers in a process group of torch, from the controller, as TorchTrainer does."""
    from ray.train.torch.config import TorchConfig

    config = TorchConfig()
    config.backend_cls().on_start(worker_group, config)


def shut_down_process_group(worker_group: Any) -> None:
    """Undo ``set_up_process_group``."""
    from ray.train.torch.config import TorchConfig

    config = TorchConfig()
    config.backend_cls().on_shutdown(worker_group, config)


def set_health_checks() -> None:
    """Set after how many seconds without an answer a worker counts as hung, for trainers that start later. All workers
    are then restarted.
    """
    # The controller polls its workers at this interval, and each report waits for the next poll.
    os.environ.setdefault(HEALTH_CHECK_INTERVAL_S_ENV_VAR, "0.2")
    os.environ.setdefault(WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR, _ANSWER_TIMEOUT_S)


def rename_unreadable_checkpoint_list(run: str, config: CheckpointConfig) -> None:
    """Rename Ray's list of a run's checkpoints if Ray cannot read it and would refuse the run.

    A crash can leave it half written, or naming a checkpoint that is gone. Only Ray uses it, to delete old checkpoints.

    Raises:
        OSError: the storage cannot be read.
    """
    storage, _, name = run.rpartition("/")
    context = StorageContext(storage, name, read_only=True)
    try:
        CheckpointManager(config, context)
    except OSError:
        raise
    except Exception as error:  # Ray's reader may raise anything
        path = context.checkpoint_manager_snapshot_path
        context.storage_filesystem.move(path, f"{path}.unusable")
        log.warning(
            "Ray's list of checkpoints %s cannot be used and was set aside (%s: %s); the checkpoints themselves are "
            "checked one by one", path, type(error).__name__, str(error).partition("\n")[0],
        )  # fmt: skip
