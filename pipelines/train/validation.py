"""Evaluation inside a training: exact sums over all workers, each sample counted once."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.data.stream.dataset import Arrays
from pipelines.train.prefetcher import to_tensors
from vlmodel.model import VLModel, VLOutput


@dataclass(frozen=True)
class Score:
    """Figures of one evaluation. Units are what the task counts: texts, or tokens.

    Attributes:
        loss: mean over the units whose target is known to the model.
        accuracy: share of ALL units that came out right: an answer outside the vocabulary counts as wrong.
        units, images: how many were evaluated.
        tasks: (loss, accuracy) of each task, where there are several; the other figures are over all by their weights.
    """

    loss: float
    accuracy: float
    units: float
    images: int
    tasks: dict[str, tuple[float, float]] = field(default_factory=dict)

    def metrics(self, prefix: str) -> dict[str, float]:
        """Loss and accuracy by the names that tracking shows."""
        named = {f"{task}/": figures for task, figures in self.tasks.items()} | {"": (self.loss, self.accuracy)}
        return {
            f"{prefix}/{task}{figure}": value
            for task, figures in named.items()
            for figure, value in zip(("loss", "accuracy"), figures, strict=True)
        }


@torch.no_grad()
def evaluate(model: VLModel, batches: Iterable[Arrays], autocast: AbstractContextManager[object]) -> Score:
    """Score this worker's batches and add up over the workers (a collective where there are several)."""
    device = next(model.parameters()).device
    tasks = list(model.decoder.task_decoders())
    # A row for all tasks together and, where there are several, one for each: loss, count, correct, total.
    sums = torch.zeros(1 + (len(tasks) if len(tasks) > 1 else 0), 4, dtype=torch.float64, device=device)
    images = torch.zeros((), dtype=torch.float64, device=device)
    training = model.training
    model.eval()
    with autocast:
        for arrays in batches:
            out = model(**to_tensors(arrays, device))
            sums += torch.stack([_sums(out), *(out.tasks or {}).values()])
            images += len(arrays["row_B"])
    model.train(training)
    if dist.is_initialized():
        dist.all_reduce(sums)
        dist.all_reduce(images)
    loss, accuracy, units = zip(*map(_figures, sums.tolist()), strict=True)
    by_task = dict(zip(tasks, zip(loss[1:], accuracy[1:], strict=True), strict=False))
    return Score(loss[0], accuracy[0], units[0], int(images.item()), by_task if len(tasks) > 1 else {})


def _sums(out: VLOutput) -> Tensor:
    return torch.stack([getattr(out, name).double() for name in ("loss_sum", "count", "correct", "total")])


def _figures(sums: list[float]) -> tuple[float, float, float]:
    loss, count, correct, total = sums
    return mean(loss, count), mean(correct, total), total


def mean(total: float, count: float) -> float:
    """``total / count``, whatever small weights they are sums of; 0 where nothing was counted."""
    return total / count if count else 0.0
