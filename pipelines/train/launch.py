"""Starts the workers of a training by Ray Train and waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError
from ray.train.v2.api.config import LoggingConfig

from pipelines.errors import escape_unprintable, expected_cause, message_of
from pipelines.train import ray_private
from pipelines.train.entry import train_loop_per_worker
from pipelines.train.errors import LostWorkerError
from pipelines.train.progress import ProgressDisplay
from pipelines.train.step import NonFiniteLossError
from pipelines.train.worker import RunSpec

# Ray keeps the newest checkpoint and the two best ones: if the newest is the best, there is still an earlier one.
_CHECKPOINTS = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="selection")
_LONGEST_REASON = 300


def launch_training(spec: RunSpec, *, label: str = "train") -> None:
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
    ray_private.set_aside_unusable_list(spec.folder, _CHECKPOINTS)
    ray_private.set_health_checks()
    trainer = ray_private.Trainer(
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
            callbacks=[_FailureLines(spec.progress_actor)],  # type: ignore[list-item]
            # Of each failure Ray would print the tracebacks of all workers, which follow from one another.
            logging_config=LoggingConfig(log_level="CRITICAL"),  # type: ignore[call-arg]
        ),
    )
    with ProgressDisplay(spec.progress_actor, spec.schedule.steps, label):
        try:
            trainer.fit()
        except WorkerGroupError as error:
            # Errors of the other workers follow from this: their collectives failed.
            lost = {rank: e for rank, e in error.worker_failures.items() if isinstance(e, ray_private.LOST_WORKER)}
            if not lost:
                raise
            raise LostWorkerError(_lost_workers_message(lost, spec.train.max_failures)) from error
    if failure := cast(str, ray.get(spec.progress_actor.failure.remote())):
        raise NonFiniteLossError(failure)


class _FailureLines(UserCallback):
    """Tells each failure of workers in one line. Ray calls it in the process that controls them."""

    def __init__(self, progress_actor: ActorHandle[Any]) -> None:
        self._progress_actor = progress_actor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # Not waited for: the actor may have been on the node that was lost.
        self._progress_actor.say.remote(failure_line(worker_exceptions))


def failure_line(errors: Mapping[int, Exception]) -> str:
    """What a user is told of the errors of workers, by rank. Most of them follow from one: their collectives failed."""
    known = {rank: cause for rank, error in errors.items() if (cause := expected_cause(error)) is not None}
    rank, error = min((known or errors).items())
    reason = message_of(error) if known else f"{type(error).__name__}: {error}"
    return f"rank {rank} failed: {escape_unprintable(reason.strip().partition(chr(10))[0])[:_LONGEST_REASON]}"


def _lost_workers_message(workers: Mapping[int, Exception], max_failures: int) -> str:
    reasons = [f"rank {rank}: " + str(error).partition("\n")[0] for rank, error in sorted(workers.items())]
    return (
        f"workers were lost ({'; '.join(reasons)}) with no restart left of train.max_failures = {max_failures}; look "
        "at their nodes and memory, and start the job again: it continues from the last whole checkpoint"
    )
