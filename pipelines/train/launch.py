"""Starts the workers of a training by Ray Train and waits for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import cast

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import HEALTH_CHECK_INTERVAL_S_ENV_VAR, WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import LoggingConfig

from pipelines.train.entry import train_loop_per_worker
from pipelines.train.errors import LostWorkerError
from pipelines.train.progress import ProgressDisplay
from pipelines.train.step import NonFiniteLossError
from pipelines.train.worker import RunSpec

log = logging.getLogger(__name__)

_LOST = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
# Ray keeps the newest checkpoint and the two best ones: if the newest is the best, there is still an earlier one.
_CHECKPOINTS = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="selection")


def launch(spec: RunSpec, *, label: str = "train") -> None:
    """Train to the end. A run of the same folder continues; a finished one returns at once.

    Args:
        label: prefix of the lines of progress.

    Raises:
        NonFiniteLossError: loss or gradient is not finite; the last checkpoint is from before.
        LostWorkerError: workers died or hung more than ``max_failures`` times.
        ray.train.TrainingFailedError: an error of the training itself.
    """
    storage, _, name = spec.folder.rpartition("/")
    gpus = spec.train.gpus_per_worker
    set_aside_unusable_list(spec.folder)
    # The controller polls its workers at this interval, and each report waits for the next poll.
    os.environ.setdefault(HEALTH_CHECK_INTERVAL_S_ENV_VAR, "0.2")
    os.environ[WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR] = str(spec.train.answer_timeout_s)
    trainer = _Trainer(
        train_loop_per_worker,
        # By reference, so that the controller does not deserialize it.
        train_loop_config={"spec": ray.put(spec)},
        scaling_config=ScalingConfig(
            num_workers=spec.train.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": spec.train.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=spec.train.max_failures),
            checkpoint_config=_CHECKPOINTS,
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
        ),
    )
    with ProgressDisplay(spec.progress_actor, spec.schedule.steps, label):
        try:
            trainer.fit()
        except WorkerGroupError as error:
            # Errors of the other workers follow from this: their collectives failed.
            lost = {rank: e for rank, e in error.worker_failures.items() if isinstance(e, _LOST)}
            if not lost:
                raise
            raise LostWorkerError(_lost_workers_message(lost, spec.train.max_failures)) from error
    if failure := cast(str, ray.get(spec.progress_actor.failure.remote())):
        raise NonFiniteLossError(failure)


def _lost_workers_message(workers: Mapping[int, Exception], max_failures: int) -> str:
    reasons = [f"rank {rank}: " + str(error).partition("\n")[0] for rank, error in sorted(workers.items())]
    return (
        f"workers were lost ({'; '.join(reasons)}) with no restart left of train.max_failures = {max_failures}; look "
        "at their nodes and memory, and start the job again: it continues from the last whole checkpoint"
    )


class _Trainer(TorchTrainer):
    """TorchTrainer without two features.

    The actor that frees a dead controller's resources polls the State API every second. It logs errors if no dashboard
    runs, and raises if two clusters run on the machine. The resources are freed when this driver ends, which it does
    when its controller is lost.

    The handler of Ctrl-C stays installed after the training, and then ends the driver only at the third Ctrl-C.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: object) -> None:
        """Keep the driver's handler."""


def set_aside_unusable_list(run: str) -> None:
    """Rename Ray's list of a run's checkpoints if Ray cannot read it and would refuse the run.

    A crash can leave it half written, or naming a checkpoint that is gone. Only Ray uses it, to delete old checkpoints.

    Raises:
        OSError: the storage cannot be read.
    """
    storage, _, name = run.rpartition("/")
    context = StorageContext(storage, name, read_only=True)
    try:
        CheckpointManager(_CHECKPOINTS, context)
    except OSError:
        raise
    except Exception as error:  # Ray's reader may raise anything
        path = context.checkpoint_manager_snapshot_path
        context.storage_filesystem.move(path, f"{path}.unusable")
        log.warning(
            "Ray's list of checkpoints %s cannot be used and was set aside (%s: %s); the checkpoints themselves are "
            "checked one by one", path, type(error).__name__, str(error).partition("\n")[0],
        )  # fmt: skip
