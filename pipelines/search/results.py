"""What is remembered of each training of a search: a small JSON file, by which a repeated job knows what is done."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from pipelines.tracking.tracker import NullTracker
from pipelines.train import checkpoint
from vlmodel.model import VLModel
from vlmodel.model_config import VLConfig

Status = Literal["finished", "stopped", "refused", "failed", "interrupted"]


@dataclass(frozen=True)
class TrainingResult:
    """How a training went.

    Attributes:
        status: "stopped" is a training that was ended early because others did better.
        reason: of what was refused or failed.
        score: the best epoch's validation figure by which checkpoints are chosen (accuracy, for tasks that have it).
        best_epoch: that epoch.
        epochs: epochs trained.
        parameters: of the model, frozen ones included.
        images_per_s: median over the training; 0 if unknown.
        seconds: wall time, over all attempts that could still write it down.
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
    def done(self) -> bool:
        """Whether there is nothing left to do for it."""
        return self.status in ("finished", "stopped", "refused")


@dataclass(frozen=True)
class Trial:
    """One sample of the space.

    Attributes:
        number: from 0; the same in a repeated search.
        settings: dotted setting -> value.
        error: of a trial that did not end well, else "".
    """

    number: int
    settings: dict[str, Any]
    error: str


class TrainingResults:
    """The records of one search, in its folder in storage."""

    def __init__(self, folder: str) -> None:
        self._filesystem, path = checkpoint.open_storage(folder)
        self._folder = f"{path}/records"

    def read(self, name: str) -> TrainingResult | None:
        """The record of the training of this name; None where there is none, or only half of one."""
        try:
            with self._filesystem.open_input_file(f"{self._folder}/{name}.json") as file:
                return TrainingResult(**json.loads(file.read()))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, name: str, record: TrainingResult) -> None:
        """Keep it, in place of an earlier one."""
        self._filesystem.create_dir(self._folder, recursive=True)
        with self._filesystem.open_output_stream(f"{self._folder}/{name}.json") as file:
            file.write(json.dumps(asdict(record), indent=1).encode())

    def add(self, name: str, record: TrainingResult) -> TrainingResult:
        """Keep it, with the seconds of earlier attempts added."""
        before = self.read(name)
        whole = replace(record, seconds=record.seconds + (before.seconds if before else 0.0))
        self.write(name, whole)
        return whole


def result_of_run(run: str, epochs: int, tracker: NullTracker) -> TrainingResult:
    """The record of a training that has ended, from its checkpoints and its tracked figures.

    Args:
        run: its folder in storage.
        epochs: how many it was meant to have; with fewer it was stopped.

    Raises:
        CheckpointError: there is no usable checkpoint.
    """
    filesystem, folder = checkpoint.open_storage(run)
    kept = list(checkpoint.complete(filesystem, folder))
    best = checkpoint.best(filesystem, folder)
    trained = max((int(stored.state["epochs_done"]) for stored in kept), default=0)
    rates = [row["speed/images_per_s"] for row in tracker.history() if "speed/images_per_s" in row]
    with checkpoint.local_copy(best) as local:
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
    """Parameters of the model in a folder; its weights are not read."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VLModel(VLConfig.from_pretrained(model)).parameters())


def spread(scores: Sequence[float]) -> float | None:
    """Sample standard deviation; None of fewer than two."""
    return statistics.stdev(scores) if len(scores) > 1 else None
