"""Starts the workers of a training through Ray Train and waits for them."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import cast

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import HEALTH_CHECK_INTERVAL_S_ENV_VAR
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import LoggingConfig

from pipelines.data.plan import check_division
from pipelines.train.entry import enter
from pipelines.train.progress import Display
from pipelines.train.step import NonFiniteLossError
from pipelines.train.worker import RunSpec

log = logging.getLogger(__name__)

_RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"


def launch(spec: RunSpec, *, has_dashboard: bool = True, label: str = "train") -> None:
    """Train to the end. A run of the same folder continues; a finished one returns at once.

    Args:
        has_dashboard: whether the cluster runs Ray's dashboard.
        label: what the lines of progress begin with.

    Raises:
        NonFiniteLossError: the loss stopped being a number; the last checkpoint is from before.
        ValueError: the global batch does not divide over the workers.
        ray.train.TrainingFailedError: more failures than ``max_failures``, or an error of the training itself.
    """
    check_division(spec.train.batch, spec.train.workers, spec.train.accumulation)
    storage, _, name = spec.folder.rpartition("/")
    _set_aside_torn_snapshot(Path(spec.folder))
    # The controller looks at its workers at this interval, and a report waits for the look.
    os.environ.setdefault(HEALTH_CHECK_INTERVAL_S_ENV_VAR, "0.2")
    trainer = (TorchTrainer if has_dashboard else _TrainerWithoutCleaner)(
        enter,
        # By reference, so that the controller passes it on unread.
        train_loop_config={"spec": ray.put(spec)},
        scaling_config=ScalingConfig(
            num_workers=spec.train.workers,
            use_gpu=spec.train.gpu,
            resources_per_worker={"CPU": spec.train.cpus_per_worker} | ({"GPU": 1} if spec.train.gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=spec.train.max_failures),
            # Ray keeps the newest besides the best.
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="selection"),
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
        ),
    )
    with Display(spec.board, spec.schedule.steps, label):
        trainer.fit()
    if failure := cast(str, ray.get(spec.board.failure.remote())):
        raise NonFiniteLossError(failure)


class _TrainerWithoutCleaner(TorchTrainer):
    """Without the actor that frees a dead controller's resources on a shared cluster.

    It asks the dashboard for the controller every second, and where there is none it complains each time. A cluster
    without a dashboard is the job's own and ends with it.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]


def _set_aside_torn_snapshot(run: Path) -> None:
    """A crash can leave Ray's own list of checkpoints half written, and Ray then refuses the run. We need none."""
    snapshot = run / _RAY_SNAPSHOT
    try:
        json.loads(snapshot.read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        log.warning("%s is torn and was set aside; the checkpoints themselves are checked one by one", snapshot)
        snapshot.rename(snapshot.with_suffix(".torn"))
