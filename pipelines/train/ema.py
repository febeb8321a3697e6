"""Exponential moving average (EMA) of the weights, updated without a device synchronization."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class EMA(AveragedModel):
    """EMA of parameters and buffers; integer buffers are copied.

    torch's own update copies its counter to the device in each step, and the host waits for it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the weights of ``model``; the first call copies them."""
        # The counter is in host memory.
        weight = 1.0 if self.n_averaged == 0 else 1.0 - self.decay
        averaged, current = [], []
        for average, value in zip(_averaged_tensors(self.module), _averaged_tensors(model), strict=True):
            if average.is_floating_point():
                averaged.append(average)
                current.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averaged, current, weight)
        self.n_averaged += 1


def _averaged_tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
