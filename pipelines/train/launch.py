"""Starts the workers of a training by Ray Train and waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.v2.api.config import LoggingConfig

from pipelines.train import ray_private
from pipelines.train.entry import train_loop_per_worker
from pipelines.train.errors import LostWorkerError
from pipelines.train.failure_lines import FailureLines
from pipelines.train.progress import ProgressDisplay
from pipelines.train.run_spec import RunSpec
from pipelines.train.torch_backend import TorchBackendConfig
from vlmodel.errors import ExpectedError

# Ray keeps the newest checkpoint and the two best ones: if the newest is the best, there is still an earlier one.
_CHECKPOINTS = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="selection")


def launch_training(spec: RunSpec, *, label: str = "train") -> None:
    """Train to the end. A run in the same folder continues; a finished one returns at once.

    Args:
        label: prefix of the lines of progress.

    Raises:
        NonFiniteLossError: loss or gradient is not finite; the last checkpoint is from before.
        WeightsError, ConfigError: the model cannot be built.
        LostWorkerError: workers died or hung more than ``max_failures`` times.
        ray.train.TrainingFailedError: an error of the training itself.
    """
    storage, _, name = spec.folder.rpartition("/")
    gpus = spec.train.gpus_per_worker
    ray_private.rename_unreadable_checkpoint_list(spec.folder, _CHECKPOINTS)
    ray_private.set_health_checks()
    trainer = ray_private.Trainer(
        train_loop_per_worker,
        backend_config=TorchBackendConfig(),
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
            callbacks=[FailureLines(spec.progress_actor)],  # type: ignore[list-item]
            # Of each failure Ray would print the tracebacks of all workers, which follow from one another.
            logging_config=LoggingConfig(log_level="CRITICAL"),  # type: ignore[call-arg]
        ),
    )
    with ProgressDisplay(spec.progress_actor, spec.schedule.step_count, label):
        try:
            trainer.fit()
        except WorkerGroupError as error:
            # Errors of the other workers follow from this: their collectives failed.
            lost = {rank: e for rank, e in error.worker_failures.items() if isinstance(e, ray_private.LOST_WORKER)}
            if not lost:
                raise
            raise LostWorkerError(_lost_workers_message(lost, spec.train.max_failures)) from error
    if failure := cast("ExpectedError | None", ray.get(spec.progress_actor.failure.remote())):
        raise failure


def _lost_workers_message(workers: Mapping[int, Exception], max_failures: int) -> str:
    reasons = [f"rank {rank}: " + str(error).partition("\n")[0] for rank, error in sorted(workers.items())]
    return (
        f"workers were lost ({'; '.join(reasons)}) with no restart left of train.max_failures = {max_failures}; look "
        "at their nodes and memory, and start the job again: it continues from the last whole checkpoint"
    )
