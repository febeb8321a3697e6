"""What the workers of a training are told. torch is not imported: the job that starts them needs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.data.stream.config import StreamConfig
from pipelines.data.stream.dataset import Source, SourceMixture
from pipelines.data.stream.plan import StepSchedule
from pipelines.tracking.tracker import RunHandle
from pipelines.train.config import TrainConfig
from vlmodel.model_config import ModelConfig

if TYPE_CHECKING:
    from ray.actor import ActorHandle


@dataclass(frozen=True)
class RunSpec:
    """Everything that a worker needs; Ray sends it to the workers.

    Attributes:
        folder: the run's folder in storage, which holds its checkpoints.
        schedule: the order of samples and the number of steps.
        train_source, val_source: of the samples; None without a validation split.
        run: the tracked run.
        progress_actor: receives the metrics that the job shows.
        config, data: the resolved configuration tree and the hash of the data's index, stored in each checkpoint.
        init: folder in storage of the initial model; "" for new weights.
        teacher: folder in storage of the model that is learned from; "" for none.
        beside_model: files that are stored beside the model in each checkpoint.
        trial_controller: told the result of each epoch; answers whether training continues. None outside a search.
    """

    folder: str
    seed: int
    model: ModelConfig
    train: TrainConfig
    stream: StreamConfig
    schedule: StepSchedule
    train_source: Source | SourceMixture
    val_source: Source | None
    run: RunHandle | None
    progress_actor: ActorHandle[Any]
    config: dict[str, Any]
    data: str
    init: str = ""
    trial_controller: ActorHandle[Any] | None = None
    teacher: str = ""
    beside_model: tuple[str, ...] = ()
