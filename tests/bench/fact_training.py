"""What the experiments with facts share: a short training on batches that are made as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from vlmodel.model import VLModel


def train(
    model: VLModel,
    batch: Callable[[int], Mapping[str, np.ndarray[Any, Any]]],
    steps: int,
    say: Callable[[str], object] = lambda line: None,
    rate: float = 1e-3,
) -> None:
    """AdamW with a warm-up and a cosine.

    Args:
        batch: the arrays of a step.
        say: is told every 50 steps which share of the answers was right.
        rate: peak learning rate.
    """
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / (0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * s / steps))
    )
    model.train()
    right = []
    for step in range(steps):
        output = model(**{name: torch.from_numpy(array) for name, array in batch(step).items()})
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right.append(float(output.correct / output.total))
        if step % 50 == 49:
            say(f"step {step + 1}: right of the last 50 batches {np.mean(right[-50:]):.3f}")
