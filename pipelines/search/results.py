"""Stores the result of each training of a search as a small JSON file, by which a repeated job knows what is done."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from pipelines.storage.folder import StorageFolder
from pipelines.tracking.tracker import NullTracker
from pipelines.train import checkpoint
from vlmodel.model import VLModel
from vlmodel.saved_config import VLConfig

Status = Literal["finished", "stopped", "refused", "failed", "interrupted"]


@dataclass(frozen=True)
class TrainingResult:
    """How a training of a search ended.

    Attributes:
        status: "stopped" is a training that was ended early because others did better.
        reason: why it was refused or failed.
        score: the best epoch's validation metric by which checkpoints are chosen (accuracy, for tasks that have it).
        best_epoch: that epoch.
        epochs: epochs trained.
        parameters: of the model, frozen ones included.
        images_per_s: median over the training; 0 if unknown.
        seconds: wall time of all attempts that could still record it.
    """

    status: Status
    reason: str = ""
    score: float | None = None
    best_epoch: int = 0
    epochs: int = 0
    parameters: int = 0
    images_per_s: float = 0.0
    seconds: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether a repeated job can skip this training."""
        return self.status in ("finished", "stopped", "refused")


@dataclass(frozen=True)
class SearchTrial:
    """One sample of the search space.

    Attributes:
        number: from 0; the same in a repeated search.
        settings: dotted setting -> value.
        error: of a trial that failed, else "".
    """

    number: int
    settings: dict[str, Any]
    error: str


class TrainingResults:
    """The results of one search, in its folder in storage."""

    def __init__(self, folder: str) -> None:
        self._folder = StorageFolder(f"{folder}/records")

    def read(self, name: str) -> TrainingResult | None:
        """Read the result of the training of this name; None if there is no complete one."""
        try:
            return TrainingResult(**json.loads(self._folder.read(f"{name}.json")))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, name: str, result: TrainingResult) -> None:
        """Store a result, replacing an earlier one."""
        self._folder.write(f"{name}.json", json.dumps(asdict(result), indent=1).encode())

    def add(self, name: str, result: TrainingResult) -> TrainingResult:
        """Store a result, with the seconds of earlier attempts added."""
        before = self.read(name)
        total = replace(result, seconds=result.seconds + (before.seconds if before else 0.0))
        self.write(name, total)
        return total


def result_of_run(run: str, epochs: int, tracker: NullTracker) -> TrainingResult:
    """Build the result of a training that has ended, from its checkpoints and its tracked metrics.

    Args:
        run: its folder in storage.
        epochs: how many were configured; with fewer it was stopped.

    Raises:
        CheckpointError: there is no usable checkpoint.
    """
    newest = checkpoint.state_of_newest_checkpoint(run)
    trained = int(newest["epochs_done"]) if newest is not None else 0
    rates = [row["speed/images_per_s"] for row in tracker.history() if "speed/images_per_s" in row]
    with checkpoint.open_best_checkpoint(run, f"{checkpoint.MODEL}/config.json") as (best, local):
        parameters = count_parameters(str(local / checkpoint.MODEL))
    return TrainingResult(
        "finished" if trained >= epochs else "stopped",
        score=float(best.state["selection"]),
        best_epoch=int(best.state["epochs_done"]),
        epochs=trained,
        parameters=parameters,
        images_per_s=statistics.median(rates) if rates else 0.0,
    )


def count_parameters(model: str) -> int:
    """Count the parameters of the model in a folder; its weights are not read."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VLModel(VLConfig.from_pretrained(model)).parameters())


def sample_standard_deviation(scores: Sequence[float]) -> float | None:
    """Compute the sample standard deviation; None for fewer than two scores."""
    return statistics.stdev(scores) if len(scores) > 1 else None
