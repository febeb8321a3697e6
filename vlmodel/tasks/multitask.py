"""Several tasks trained together: one set of encoders, one topology and fusion, a head for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from vlmodel.config import part
from vlmodel.task import Task, TaskPart
from vlmodel.tasks import DEFAULT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlmodel.parts import Decoder, Vocabulary


class Config(TaskPart):
    """Several tasks, each with a name of your choice."""

    kind: Literal["multitask"] = "multitask"
    heads: dict[str, part("vlmodel.tasks", DEFAULT)] = Field(min_length=2)  # type: ignore[valid-type]
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

    def tasks(self) -> dict[str, Task]:
        # In the order of their names, as in a saved model.
        return {name: self.heads[name].tasks()[""] for name in sorted(self.heads)}

    def reads_text(self) -> bool:
        return any(head.reads_text() for head in self.heads.values())

    def reads_joint(self) -> bool:
        return any(head.reads_joint() for head in self.heads.values())

    def encodes_text(self) -> bool:
        return any(head.encodes_text() for head in self.heads.values())

    def reads_streams(self) -> bool:
        return any(head.reads_streams() for head in self.heads.values())

    def frames_texts(self) -> bool:
        return any(head.frames_texts() for head in self.heads.values())

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        for head in self.heads.values():
            head.check_tokenizer(tokenizer)

    def reads_encoded(self) -> bool:
        return any(head.reads_encoded() for head in self.heads.values())

    def encoded_streams(self) -> frozenset[str]:
        return frozenset().union(*(head.encoded_streams() for head in self.heads.values()))

    def selection_metric(self) -> Literal["accuracy", "loss"]:
        # The loss is the metric that all tasks have.
        return "loss" if any(head.selection_metric() == "loss" for head in self.heads.values()) else "accuracy"

    def resolve(self, vocabulary: Vocabulary) -> Config:
        return self.model_copy(update={"heads": {name: head.resolve(vocabulary) for name, head in self.heads.items()}})

    def longest_target(self) -> int | None:
        return min((n for head in self.heads.values() if (n := head.longest_target()) is not None), default=None)

    def check_generation(self, settings: Mapping[str, Any], top_k: int, max_target_tokens: int) -> None:
        for head in self.heads.values():
            head.check_generation(settings, top_k, max_target_tokens)

    def build(self, widths: Mapping[str, int], vocabulary: Vocabulary) -> Decoder:
        from vlmodel.decoder.multitask import MultiTask

        return MultiTask({name: self.heads[name].build(widths, vocabulary) for name in self.tasks()}, self.weights)
