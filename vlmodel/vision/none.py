"""Vision part ``none``: the model reads no images."""

from __future__ import annotations

from typing import ClassVar, Literal

from vlmodel import parts
from vlmodel.config import ConfigError


class Config(parts.VisionPart):
    """Settings of a model that reads no images, only texts and additional inputs (``model.inputs``)."""

    reads_images: ClassVar[bool] = False

    kind: Literal["none"] = "none"

    def build(self) -> parts.VisionEncoder:
        raise ConfigError("vision.kind='none' is no encoder; choose another kind to encode images")
