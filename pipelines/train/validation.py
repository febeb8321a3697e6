"""Validation during training: exact sums over all workers, each sample counted once."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.data.stream.dataset import Arrays
from pipelines.train.prefetcher import arrays_to_tensors
from vlmodel.model import VLModel, VLOutput


@dataclass(frozen=True)
class ValidationResult:
    """The metrics of one validation, over counted units (texts or tokens).

    Attributes:
        loss: mean over the units whose target is in the model's vocabulary.
        accuracy: share of ALL units that are right: a target outside the vocabulary counts as wrong.
        units, images: number of evaluated ones.
        tasks: (loss, accuracy) of each task, if there are several; the other metrics are weighted over all tasks.
    """

    loss: float
    accuracy: float
    units: float
    images: int
    tasks: dict[str, tuple[float, float]] = field(default_factory=dict)

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return loss and accuracy by their names in tracking."""
        named = {f"{task}/": values for task, values in self.tasks.items()} | {"": (self.loss, self.accuracy)}
        return {
            f"{prefix}/{task}{metric}": value
            for task, values in named.items()
            for metric, value in zip(("loss", "accuracy"), values, strict=True)
        }


@torch.no_grad()
def evaluate(model: VLModel, batches: Iterable[Arrays], autocast: AbstractContextManager[object]) -> ValidationResult:
    """Evaluate this worker's batches and sum over all workers (a collective)."""
    device = next(model.parameters()).device
    tasks = list(model.decoder.task_decoders())
    # A row for all tasks together and, if there are several, one for each: loss, count, correct, total.
    sums = torch.zeros(1 + (len(tasks) if len(tasks) > 1 else 0), 4, dtype=torch.float64, device=device)
    images = torch.zeros((), dtype=torch.float64, device=device)
    training = model.training
    model.eval()
    with autocast:
        for arrays in batches:
            out = model(**arrays_to_tensors(arrays, device))
            if arrays["counts_B"].all():  # else another worker has evaluated it
                sums += torch.stack([_loss_sums(out), *(out.tasks or {}).values()])
                images += len(arrays["row_B"])
    model.train(training)
    if dist.is_initialized():
        dist.all_reduce(sums)
        dist.all_reduce(images)
    (loss, accuracy, units), *by_task = (
        (divide_or_zero(loss, count), divide_or_zero(correct, total), total)
        for loss, count, correct, total in sums.tolist()
    )
    task_metrics = {task: values[:2] for task, values in zip(tasks, by_task, strict=False)}
    return ValidationResult(loss, accuracy, units, int(images.item()), task_metrics)


def _loss_sums(out: VLOutput) -> Tensor:
    return torch.stack([getattr(out, name).double() for name in ("loss_sum", "count", "correct", "total")])


def divide_or_zero(total: float, count: float) -> float:
    """Return ``total / count``, or 0 if nothing was counted. The count may be a sum of small weights."""
    return total / count if count else 0.0
