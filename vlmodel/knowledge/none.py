"""Knowledge part ``none``: the model uses no facts."""

from __future__ import annotations

from typing import ClassVar, Literal

from vlmodel.knowledge_parts import KnowledgePart


class Config(KnowledgePart):
    """The model reads no facts."""

    reads_facts: ClassVar[bool] = False

    kind: Literal["none"] = "none"
