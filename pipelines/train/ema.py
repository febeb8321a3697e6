"""Exponential moving average (EMA) of the trained weights, updated without a device synchronization."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.train.sharding import local_tensors


class EMA(nn.Module):
    """The EMA of the trained parameters and of buffers; integer buffers are copied. Frozen weights are shared with the
    model.

    torch's ``AveragedModel`` copies frozen weights too, and its counter to the device in each step, for which the host
    waits.

    Args:
        frozen: names in ``state_dict`` of what training never changes.

    Attributes:
        module: the model with averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float, frozen: Collection[str] = ()) -> None:
        super().__init__()
        self.decay, self.updates = decay, 0
        shared = [tensor for name, tensor in _tensors_to_average(model).items() if name in frozen]
        self.module = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
        self._names = [name for name in _tensors_to_average(model) if name not in frozen]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the weights of ``model``; the first call copies them."""
        weight = 1.0 if self.updates == 0 else 1.0 - self.decay
        averages, values = _tensors_to_average(self.module), _tensors_to_average(model)
        averaged, current = [], []
        for name in self._names:
            if averages[name].is_floating_point():
                averaged.append(averages[name])
                current.append(values[name])
            else:
                averages[name].copy_(values[name])
        torch._foreach_lerp_(local_tensors(averaged), local_tensors(current), weight)
        self.updates += 1

    def state(self) -> dict[str, Any]:
        """Return the state that ``load_state`` restores, without frozen weights."""
        weights = self.module.state_dict()
        return {"updates": self.updates, "weights": {name: weights[name] for name in self._names if name in weights}}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state`` returned for the same model."""
        self.updates = int(state["updates"])
        averages = _tensors_to_average(self.module)
        for name, value in state["weights"].items():
            averages[name].copy_(value)


def _tensors_to_average(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
