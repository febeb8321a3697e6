"""The jobs' import, index and training in one process, without Ray: on a loaded machine its processes would cost more
than the small models of the benchmarks. Order, batches, random states and updates are those of a worker that is alone,
so that the model is the same to the last bit (``test_media.test_a_worker_learns_the_same``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from pipelines.data.stream.loader import EvaluationBatches, MicroBatches
from pipelines.train.loop import TrainingProgress, train
from pipelines.train.prefetcher import DevicePrefetcher
from pipelines.train.run_spec import RunSpec
from pipelines.train.step import TrainStep
from pipelines.train.validation import ValidationResult, evaluate
from pipelines.train.worker import create_initial_model
from pipelines.workflows import import_data, index
from pipelines.workflows.fit import fit
from pipelines.workflows.workspace import Workspace
from vlmodel.processor import VLProcessor

MODEL = "model"


@dataclass
class Hooks:
    """What the loop of the training asks for: validations, and the last model."""

    spec: RunSpec
    step: TrainStep
    processor: VLProcessor
    history: list[dict[str, float]] = field(default_factory=list)

    def evaluate(self) -> ValidationResult | None:
        if self.spec.val_source is None:
            return None
        batches = EvaluationBatches(self.spec.val_source, self.spec.train.evaluation_batch)
        return evaluate(self.step.evaluated_model, map(batches.__getitem__, range(len(batches))), self.step.autocast())

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def checkpoint(self, progress: TrainingProgress, selection: float) -> None:
        self.history = progress.history

    def should_continue(self, progress: TrainingProgress, selection: float) -> bool:
        return True


def train_here(spec: RunSpec) -> list[dict[str, float]]:
    """Train to the last epoch, whose model is saved in the run's folder. Returns what the epochs gave."""
    torch.set_num_threads(spec.train.threads or 1)
    processor = VLProcessor.from_pretrained(spec.train_source.processor)
    model = create_initial_model(spec.model, processor, spec.seed, spec.init)
    config = spec.train
    step = TrainStep(model, config.optimizer, config.step, steps=spec.schedule.step_count, seed=spec.seed)
    batches = MicroBatches(
        spec.train_source, spec.schedule, 0, 1, config.accumulation, config.augment, config.drop_streams
    )
    made = DevicePrefetcher(map(batches.__getitem__, range(len(batches))), torch.device("cpu"))
    hooks = Hooks(spec, step, processor)
    train(step, spec.schedule, made, config, TrainingProgress(), hooks)
    folder = Path(spec.folder) / MODEL
    step.evaluated_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return hooks.history


def learn(work: Workspace) -> list[dict[str, float]]:
    """Import, index, train. Returns what the epochs gave."""
    history: list[dict[str, float]] = []
    with ExitStack() as stack:
        for module in ("data.index.build", "data.texts.corpus", "data.texts.lengths"):
            stack.enter_context(patch(f"pipelines.{module}.map_shards", _map_shards))
        stack.enter_context(patch("pipelines.workflows.index.connected_to_cluster", _no_cluster))
        stack.enter_context(patch("pipelines.workflows.fit.create_progress_actor", lambda: None))
        stack.enter_context(
            patch("pipelines.workflows.fit.launch_training", lambda spec, label: history.extend(train_here(spec)))
        )
        import_data.run(work)
        index.run(work)
        with work.track() as tracker:
            fit(work, work.index(), tracker)
    return history


def _map_shards(items: Sequence[Any], work: Any, **remote: Any) -> Iterator[Mapping[str, Any]]:
    apply = work() if isinstance(work, type) else work
    return (apply(item if isinstance(item, Mapping) else {"item": item}) for item in items)


@contextmanager
def _no_cluster(config: object) -> Iterator[bool]:
    yield True
