"""Vision part ``none``: the model reads no images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from vlmodel.config import ConfigError
from vlmodel.part_configs import VisionPart

if TYPE_CHECKING:
    from vlmodel import parts


class Config(VisionPart):
    """Settings of a model that reads no images, only texts and additional inputs (``model.inputs``)."""

    reads_images: ClassVar[bool] = False

    kind: Literal["none"] = "none"

    def build(self) -> parts.VisionEncoder:
        raise ConfigError("vision.kind='none' is no encoder; choose another kind to encode images")
