"""Visual question answering by generation: the answer is generated, and not chosen from a list."""

from __future__ import annotations

from typing import Literal

from vlmodel.decoder._sequence import SequenceConfig
from vlmodel.task_spec import TaskSpec


class Config(SequenceConfig):
    """A decoder that generates answers."""

    kind: Literal["answer"] = "answer"

    def tasks(self) -> dict[str, TaskSpec]:
        return {"": TaskSpec(reads="questions", text=True, target="tokens")}
