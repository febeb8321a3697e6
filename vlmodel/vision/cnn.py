"""Vision encoders from torchvision's CNNs and hierarchical Transformers (VGG, ResNet, EfficientNet, ConvNeXt, Swin,
MaxViT, Inception, ...) and CIFAR's ResNets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from vlmodel.config import ConfigError
from vlmodel.images.preprocessing import describe_size
from vlmodel.vision._settings import BackboneConfig
from vlmodel.vision._torchvision import accepts_image_size, backbone_stages, is_torchvision_name

if TYPE_CHECKING:
    from vlmodel.vision._cnn import CNNEncoder


class Config(BackboneConfig):
    """Settings of a torchvision CNN, Swin or MaxViT, or a CIFAR ResNet, cut after a stage."""

    kind: Literal["cnn"] = "cnn"
    name: str = "resnet18"
    """A classifier of torchvision.models.list_models(): any ResNet, RegNet, VGG, DenseNet, ConvNeXt, Swin, ...; or
    cifar_resnet with 20, 32, 44, 56 or 110 layers."""
    stages: int | None = Field(None, ge=1)
    """Stages to keep; null keeps all. A ResNet has four; after the third a grid cell stands for 16 x 16 pixels."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """First layers of a ResNet: "imagenet" lowers the resolution fourfold; "small" (3x3, stride 1) keeps it."""
    output: Literal["grid", "multiscale", "pooled"] = "grid"
    """A token for each cell of the last feature map, or of those of the last ``scales`` stages; or the last's mean."""
    scales: int = Field(2, ge=1)
    """With output "multiscale": how many of the last stages have tokens, each projected to one width."""
    position: Literal["sine", "none"] = "sine"
    """Position added to grid tokens: fixed two-dimensional sines, for images of any size."""
    position_scale: float = Field(0.1, gt=0, allow_inf_nan=False)
    """Amplitude of the positions; at 1 they outweigh the features of an untrained backbone. At 0.1 a small fusion is
    slow to learn where the object is that it attends to: raise it where questions ask for places."""
    frozen_stages: int = Field(0, ge=0)
    """Do not train the stem and this many stages."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        available = len(backbone_stages(self.name, self.stem).strides)
        kept = self.stages or available
        if kept > available:
            raise ValueError(f"stages={kept}, and {self.name} has {available}; choose 1 to {available}")
        if self.frozen_stages > kept:
            raise ValueError(f"frozen_stages={self.frozen_stages} is more than the {kept} stages kept")
        if self.output == "multiscale" and self.scales > kept:
            raise ValueError(f"scales={self.scales} is more than the {kept} stages kept; choose 1 to {kept}")
        if self.stem == "small" and is_torchvision_name(self.weights):
            raise ValueError(
                f"stem='small' has another first convolution than weights={self.weights!r}; use stem='imagenet', or a "
                "state dict that was trained with the small stem"
            )
        return self

    def has_projection(self) -> bool:
        return self.projection is not None or self.output == "multiscale"

    def build(self) -> CNNEncoder:
        from vlmodel.vision._cnn import CNNEncoder

        return CNNEncoder(self)

    def check_image_size(self, size: tuple[int, int]) -> None:
        super().check_image_size(size)
        shown = describe_size(size)
        strides, only_size = backbone_stages(self.name, self.stem)
        smallest = max(strides[: self.stages])
        if min(size) < smallest:
            raise ConfigError(
                f"processor.image_size={shown} is smaller than one grid cell of model.vision, which stands for "
                f"{smallest} x {smallest} pixels; make the image larger or keep fewer stages"
            )
        if only_size is not None and size != (only_size, only_size):
            raise ConfigError(
                f"processor.image_size={shown}: {self.name} takes images of {only_size} x {only_size} pixels; "
                f"set image_size={only_size}, or choose another backbone"
            )
        if not accepts_image_size(self.name, self.stem, self.stages or len(strides), size):
            raise ConfigError(
                f"processor.image_size={shown} is too small for {self.name}, which leaves nothing of it; make the "
                "image larger or keep fewer stages"
            )
