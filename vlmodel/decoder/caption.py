"""Captioning: a text is generated from the image alone."""

from __future__ import annotations

from typing import Literal

from vlmodel.decoder._sequence import SequenceConfig
from vlmodel.task_spec import TaskSpec


class Config(SequenceConfig):
    """A decoder that generates captions."""

    kind: Literal["caption"] = "caption"

    def tasks(self) -> dict[str, TaskSpec]:
        return {"": TaskSpec(reads="captions", text=False, target="tokens")}
