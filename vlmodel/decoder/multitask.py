"""Several tasks trained together: one set of encoders, one topology and fusion, a decoder for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.config import part
from vlmodel.task_spec import TaskSpec
from vlmodel.tokens import DecoderInput


class Config(parts.DecoderPart):
    """Several tasks, each with a name of your choice."""

    kind: Literal["multitask"] = "multitask"
    heads: dict[str, part("vlmodel.decoder", "vqa")] = Field(min_length=2)  # type: ignore[valid-type]
    """The tasks: a name for each, and its decoder."""
    weights: dict[str, float] = {}
    """Weight of each unit (text, or token of a caption) of a task in loss and metrics; one if not given."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        for name, head in self.heads.items():
            if not name.isidentifier():
                raise ValueError(f"heads has {name!r}; a task's name has letters, digits and underscores only")
            if hasattr(nn.ModuleDict(), name):
                raise ValueError(f"heads.{name}: torch's modules have a {name!r} of their own; give it another name")
            if isinstance(head, Config):
                raise ValueError(f"heads.{name} is itself a multitask decoder; list its heads here instead")
        if unknown := sorted(set(self.weights) - set(self.heads)):
            raise ValueError(f"weights has {unknown[0]!r}, which is no task; the tasks are {', '.join(self.heads)}")
        if refused := sorted(name for name, weight in self.weights.items() if not 0 < weight < math.inf):
            raise ValueError(
                f"weights.{refused[0]}={self.weights[refused[0]]} must be a number above 0; remove the head instead"
            )
        return self

    def tasks(self) -> dict[str, TaskSpec]:
        # In the order of their names, as in a saved model.
        return {name: self.heads[name].tasks()[""] for name in sorted(self.heads)}

    def reads_joint(self) -> bool:
        return any(head.reads_joint() for head in self.heads.values())

    def reads_encoded(self) -> bool:
        return any(head.reads_encoded() for head in self.heads.values())

    def encoded_streams(self) -> frozenset[str]:
        return frozenset().union(*(head.encoded_streams() for head in self.heads.values()))

    def selection_metric(self) -> Literal["accuracy", "loss"]:
        # The loss is the metric that all tasks have.
        return "loss" if any(head.selection_metric() == "loss" for head in self.heads.values()) else "accuracy"

    def resolve(self, vocabulary: parts.Vocabulary) -> Config:
        return self.model_copy(update={"heads": {name: head.resolve(vocabulary) for name, head in self.heads.items()}})

    def longest_target(self) -> int | None:
        return min((n for head in self.heads.values() if (n := head.longest_target()) is not None), default=None)

    def check_generation(self, settings: Mapping[str, Any], top_k: int, max_target_tokens: int) -> None:
        for head in self.heads.values():
            head.check_generation(settings, top_k, max_target_tokens)

    def build(self, widths: Mapping[str, int], vocabulary: parts.Vocabulary) -> MultiTask:
        return MultiTask({name: self.heads[name].build(widths, vocabulary) for name in self.tasks()}, self.weights)


class MultiTask(parts.Decoder):
    """The decoders of all tasks; the loss is the mean over all their units by the tasks' weights."""

    def __init__(self, heads: Mapping[str, parts.Decoder], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict(heads)
        self.weights = {name: weights.get(name, 1.0) for name in heads}

    def task_decoders(self) -> Mapping[str, parts.Decoder]:
        return dict(self.by_name.items())  # type: ignore[arg-type]

    def combine(self, decoded: Mapping[str, parts.DecoderOutput]) -> parts.DecoderOutput:
        return parts.DecoderOutput(
            None, *(self._weighted_sum(decoded, name) for name in ("loss_sum", "count", "correct", "total"))
        )

    def forward(self, encoded: DecoderInput, **targets: Any) -> parts.DecoderOutput:
        raise TypeError("a multitask decoder is not called itself: call those of its tasks, each with its own rows")

    def _weighted_sum(self, decoded: Mapping[str, parts.DecoderOutput], name: str) -> Tensor | None:
        """The weighted sum of an attribute over the tasks."""
        values = [(self.weights[task], getattr(output, name)) for task, output in decoded.items()]
        if any(value is None for _, value in values):
            return None
        total: Tensor = sum(weight * value for weight, value in values)
        return total
