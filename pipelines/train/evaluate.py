"""Evaluation inside a training: exact sums over all workers, each sample counted once."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipelines.data.loader import Arrays
from pipelines.train.feed import to_tensors
from vlmodel.model import VLModel


@dataclass(frozen=True)
class Score:
    """Figures of one evaluation.

    Attributes:
        loss: mean over the texts whose target is in the vocabulary.
        accuracy: right answers over ALL texts: one outside the vocabulary counts as wrong.
        texts, images: how many were evaluated.
    """

    loss: float
    accuracy: float
    texts: int
    images: int


@torch.no_grad()
def evaluate(model: VLModel, batches: Iterable[Arrays], autocast: AbstractContextManager[object]) -> Score:
    """Score this worker's batches and add up over the workers (a collective where there are several)."""
    device = next(model.parameters()).device
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    training = model.training
    model.eval()
    with autocast:
        for arrays in batches:
            out = model(**to_tensors(arrays, device))
            sums = [out.loss_sum.double(), out.count.double(), out.correct.double()]
            sizes = [len(arrays["input_ids_NT"]), len(arrays["pixels_BHWC"])]
            totals += torch.stack([*sums, *(torch.tensor(float(n), device=device).double() for n in sizes)])
    model.train(training)
    if dist.is_initialized():
        dist.all_reduce(totals)
    loss, count, correct, texts, images = totals.tolist()
    return Score(loss / max(count, 1.0), correct / max(texts, 1.0), int(texts), int(images))
