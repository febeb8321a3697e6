"""Trains several tasks together: they share encoders, topology and fusion, and each has its own head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from vlmodel.config import part_field
from vlmodel.task import Task, TaskPart
from vlmodel.tasks import DEFAULT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlmodel.part_configs import Vocabulary
    from vlmodel.parts import Decoder


class Config(TaskPart):
    """Settings of several tasks, each under a name of your choice."""

    kind: Literal["multitask"] = "multitask"
    heads: dict[str, part_field("vlmodel.tasks", DEFAULT)] = Field(min_length=2)  # type: ignore[valid-type]
    """The tasks: a name for each, and its settings."""
    weights: dict[str, float] = {}
    """Weight of each unit (text, or token of a caption) of a task in loss and metrics; one if not given."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        from torch import nn

        for name, head in self.heads.items():
            if not name.isidentifier():
                raise ValueError(f"heads has {name!r}; a task's name has letters, digits and underscores only")
            if hasattr(nn.ModuleDict(), name):
                raise ValueError(f"heads.{name}: torch's modules have a {name!r} of their own; give it another name")
            if isinstance(head, Config):
                raise ValueError(f"heads.{name} is itself of several tasks; list its heads here instead")
        if unknown := sorted(set(self.weights) - set(self.heads)):
            raise ValueError(f"weights has {unknown[0]!r}, which is no task; the tasks are {', '.join(self.heads)}")
        if refused := sorted(name for name, weight in self.weights.items() if not 0 < weight < math.inf):
            raise ValueError(
                f"weights.{refused[0]}={self.weights[refused[0]]} must be a number above 0; remove the head instead"
            )
        return self

    def tasks_by_name(self) -> dict[str, Task]:
        # In the order of their names, as in a saved model.
        return {name: self.heads[name].tasks_by_name()[""] for name in sorted(self.heads)}

    def reads_text(self) -> bool:
        return any(head.reads_text() for head in self.heads.values())

    def reads_joint_stream(self) -> bool:
        return any(head.reads_joint_stream() for head in self.heads.values())

    def encodes_text(self) -> bool:
        return any(head.encodes_text() for head in self.heads.values())

    def reads_every_stream(self) -> bool:
        return any(head.reads_every_stream() for head in self.heads.values())

    def needs_begin_and_end_tokens(self) -> bool:
        return any(head.needs_begin_and_end_tokens() for head in self.heads.values())

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        for head in self.heads.values():
            head.check_tokenizer(tokenizer)

    def reads_unfused_streams(self) -> bool:
        return any(head.reads_unfused_streams() for head in self.heads.values())

    def unfused_stream_names(self) -> frozenset[str]:
        return frozenset().union(*(head.unfused_stream_names() for head in self.heads.values()))

    def checkpoint_metric(self) -> Literal["accuracy", "loss"]:
        # The loss is the metric that all tasks have.
        return "loss" if any(head.checkpoint_metric() == "loss" for head in self.heads.values()) else "accuracy"

    def resolve_settings(self, vocabulary: Vocabulary) -> Config:
        return self.model_copy(
            update={"heads": {name: head.resolve_settings(vocabulary) for name, head in self.heads.items()}}
        )

    def max_generated_tokens(self) -> int | None:
        return min((n for head in self.heads.values() if (n := head.max_generated_tokens()) is not None), default=None)

    def check_generation(self, settings: Mapping[str, Any], top_k: int, max_target_tokens: int) -> None:
        for head in self.heads.values():
            head.check_generation(settings, top_k, max_target_tokens)

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> Decoder:
        from vlmodel.decoder.multitask import MultiTaskDecoder

        return MultiTaskDecoder(
            {name: self.heads[name].build(widths, vocabulary) for name in self.tasks_by_name()}, self.weights
        )
