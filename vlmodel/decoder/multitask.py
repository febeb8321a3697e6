"""Combines the heads of several tasks that are trained together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlmodel import parts
from vlmodel.tokens import DecoderInput


class MultiTaskDecoder(parts.Decoder):
    """Holds the heads of several tasks and combines their losses: the weighted mean over the counted units of all
    tasks.
    """

    def __init__(self, heads: Mapping[str, parts.Decoder], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict(heads)
        self.weights = {name: weights.get(name, 1.0) for name in heads}

    def task_decoders(self) -> Mapping[str, parts.Decoder]:
        return dict(self.by_name.items())  # type: ignore[arg-type]

    def combine_task_outputs(self, decoded: Mapping[str, parts.DecoderOutput]) -> parts.DecoderOutput:
        return parts.DecoderOutput(
            None, *(self._weighted_sum_over_tasks(decoded, name) for name in ("loss_sum", "count", "correct", "total"))
        )

    def forward(self, encoded: DecoderInput, **targets: Any) -> parts.DecoderOutput:
        raise TypeError(
            "the head of several tasks is not called itself: call those of its tasks, each with its own rows"
        )

    def _weighted_sum_over_tasks(self, decoded: Mapping[str, parts.DecoderOutput], name: str) -> Tensor | None:
        """Sum an attribute of the tasks' outputs, weighted by the weights of the tasks."""
        values = [(self.weights[task], getattr(output, name)) for task, output in decoded.items()]
        if any(value is None for _, value in values):
            return None
        total: Tensor = sum(weight * value for weight, value in values)
        return total
