"""Settings that all vision backbones share. torch is not imported here: reading settings needs none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlmodel.config import ConfigError
from vlmodel.images.preprocessing import ImagePreprocessing, ImageSize, Triple, describe_size
from vlmodel.layer_settings import check_activation_has_projection
from vlmodel.locations import Location
from vlmodel.lora import LoraSettings
from vlmodel.part_configs import VisionPart
from vlmodel.vision._torchvision import is_torchvision_name, torchvision_preprocessing


class BackboneConfig(VisionPart):
    """Settings that all vision backbones share."""

    non_backbone_settings: ClassVar[frozenset[str]] = frozenset(
        {"projection", "activation", "weights", "strict", "frozen", "lora"}
    )

    image_size: ImageSize | None = None
    """Height and width of the images; null takes processor.image_size, and without one the encoder's own."""
    grid: ImageSize | None = None
    """Average a feature map to this many cells a side, or [rows, columns] (adaptive pooling), for fewer tokens; null
    keeps its own."""
    projection: int | None = Field(None, ge=1)
    """Width of a linear projection of the features; null for none."""
    activation: Literal["none", "gelu", "relu", "tanh"] = "none"
    """Activation after the projection."""
    weights: Location = ""
    """"" (from scratch), "imagenet", a name of torchvision's such as "IMAGENET1K_V2", or a state dict's path."""
    strict: bool = True
    """Refuse weights that are not exactly the backbone's; false loads those that fit, and logs which did not."""
    frozen: bool = False
    """Do not train the backbone (its projection is always trained); it then runs without gradient."""
    lora: LoraSettings | None = None
    """Low-rank adapters in the backbone, which is frozen but for them; null for none."""
    mean: Triple | None = Field(None, strict=False)
    """Mean of the red, green and blue channels, which are scaled to 0..1; null takes that of the weights, and without
    weights ImageNet's."""
    std: Triple | None = Field(None, strict=False)
    """Their standard deviation; null as for the mean."""

    @model_validator(mode="after")
    def _check_mean_and_std(self) -> BackboneConfig:
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean={self.mean} must be of finite numbers")
        if self.std is not None and not all(0 < std < math.inf for std in self.std):
            raise ValueError(f"std={self.std} must be positive and finite")
        check_activation_has_projection(self.activation, self.has_projection())
        partly = next((name for name in ("frozen", "frozen_stages", "frozen_layers") if getattr(self, name, 0)), None)
        if self.lora is not None and partly is not None:
            raise ValueError(f"lora trains adapters in a backbone that is frozen but for them; leave {partly} out")
        return self

    def preprocessing(self) -> ImagePreprocessing:
        usual = super().preprocessing()
        if is_torchvision_name(self.weights):
            usual = torchvision_preprocessing(getattr(self, "name", ""), self.weights)
        return replace(usual, size=self.image_size) if self.image_size else usual

    def resolve_settings(self, image_size: tuple[int, int]) -> Self:
        return self.model_copy(update={"image_size": self.image_size or image_size})

    def is_frozen(self) -> bool:
        return self.frozen

    def check_image_size(self, size: tuple[int, int]) -> None:
        if self.image_size not in (None, size):
            raise ConfigError(
                f"processor.image_size={describe_size(size)}, and model.vision.image_size="
                f"{describe_size(self.image_size)}; leave the second out"
            )

    def averaged_grid(self) -> tuple[int, int] | None:
        """The rows and columns to which a feature map is averaged; None if it keeps its own."""
        return (1, 1) if getattr(self, "output", "") == "pooled" else self.grid

    def describe_unused_setting(self) -> str | None:
        if getattr(self, "output", "") != "pooled" or self.grid is None:
            return None
        return f"grid={describe_size(self.grid)} is of no use with output='pooled', which is one token; leave grid out"

    def has_projection(self) -> bool:
        """Whether a linear projection follows the backbone."""
        return self.projection is not None
