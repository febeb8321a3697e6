"""Convolutional backbones of torchvision's: VGG, ResNet, DenseNet, MobileNet, EfficientNet, ConvNeXt, ..."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from vlmodel import parts
from vlmodel.tokens import Tokens
from vlmodel.vision import _backbones, _weights
from vlmodel.vision._positions import sine_positions

log = logging.getLogger(__name__)


class Config(parts.VisionPart):
    """A torchvision CNN, cut after a stage."""

    kind: Literal["cnn"] = "cnn"
    name: str = "resnet18"
    """A CNN classifier of torchvision.models.list_models(): any ResNet, VGG, DenseNet, EfficientNet, ConvNeXt, ..."""
    stages: int | None = Field(None, ge=1)
    """Stages to keep; null keeps all. A ResNet has four; after the third a grid cell stands for 16 x 16 pixels."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """First layers of a ResNet: "imagenet" lowers the resolution fourfold; "small" (3x3, stride 1) keeps it."""
    output: Literal["grid", "pooled"] = "grid"
    """A token for each cell of the feature map, or their mean as the only token."""
    grid: int | None = Field(None, ge=1)
    """Average the feature map to this many cells a side (adaptive pooling), for fewer tokens; null keeps its own."""
    projection: int | None = Field(None, ge=1)
    """Width of a linear projection of the features; null for none."""
    position: Literal["sine", "none"] = "sine"
    """Position added to grid tokens: fixed two-dimensional sines, for images of any size."""
    position_scale: float = Field(0.1, gt=0)
    """Amplitude of the positions; at 1 they drown the features of an untrained backbone."""
    weights: str = ""
    """"" (from scratch), "imagenet", a name of torchvision's such as "IMAGENET1K_V2", or a state dict's path."""
    frozen: bool = False
    """Leave the whole backbone untrained (never its projection)."""
    frozen_stages: int = Field(0, ge=0)
    """Leave the stem and this many stages untrained."""
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), strict=False)
    """Mean of the red, green and blue channels, which are scaled to 0..1; the default is ImageNet's."""
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), strict=False)
    """Their standard deviation."""

    @model_validator(mode="after")
    def _possible(self) -> Config:
        _backbones.check(self.name, self.stem)
        available = len(_backbones.layout(self.name, self.stem).stages)
        if self.stages is not None and self.stages > available:
            raise ValueError(f"stages={self.stages}, and {self.name} has {available}; choose 1 to {available}")
        if self.frozen_stages > (self.stages or available):
            raise ValueError(
                f"frozen_stages={self.frozen_stages} is more than the {self.stages or available} stages kept"
            )
        if self.stem == "small" and _weights.is_torchvision_name(self.weights):
            raise ValueError(
                f"stem='small' has another first convolution than weights={self.weights!r}; use stem='imagenet', or a "
                "state dict that was trained with the small stem"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be positive")
        return self

    def build(self) -> CNN:
        return CNN(self)

    def smallest_image(self) -> int:
        return max(_backbones.layout(self.name, self.stem).strides[: self.stages])


class CNN(parts.Encoder):
    """Normalisation, backbone, projection, positions.

    In a frozen part BatchNorm keeps its statistics; in a trained part it uses those of the batch, as torch does.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        layout = _backbones.layout(config.name, config.stem)
        stages = config.stages or len(layout.stages)
        kept = layout.stages[stages - 1]
        channels = layout.channels[stages - 1]
        self._names = {_identifier(name): name for name in layout.blocks[:kept]}
        self.backbone = nn.Sequential()
        for name, block in list(_backbones.blocks(_backbones.create(config.name, config.stem)))[:kept]:
            self.backbone.add_module(_identifier(name), block)
        self.projection = nn.Linear(channels, config.projection) if config.projection else nn.Identity()
        self.width = config.projection or channels
        self.register_buffer("mean_C", torch.tensor(config.mean))
        self.register_buffer("std_C", torch.tensor(config.std))
        self.report: _weights.WeightsReport | None = None

        frozen = kept if config.frozen else layout.stages[config.frozen_stages - 1] if config.frozen_stages else 0
        self.freeze(*(f"backbone.{_identifier(name)}" for name in layout.blocks[:frozen]))
        self.backbone.to(memory_format=torch.channels_last)

    def features(self, pixels_BHWC: Tensor) -> Tensor:
        """The backbone's feature map (B, C, H, W) of uint8 images."""
        # A permuted view of BHWC is what torch calls channels-last: no copy is made.
        pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2)
        scale_C = 1 / (255 * self.std_C)
        x_BCHW = pixels_BCHW * scale_C[:, None, None] - (self.mean_C / self.std_C)[:, None, None]
        features_BCHW: Tensor = self.backbone(x_BCHW)
        return features_BCHW

    def forward(self, pixels_BHWC: Tensor) -> Tokens:
        features_BCHW = self.features(pixels_BHWC)
        if self.config.grid is not None:
            features_BCHW = functional.adaptive_avg_pool2d(features_BCHW, self.config.grid)
        height, width = features_BCHW.shape[-2:]
        x_BTD = self.projection(features_BCHW.permute(0, 2, 3, 1).flatten(1, 2))
        pooled_BD = x_BTD.mean(1)
        if self.config.output == "pooled":
            x_BTD = pooled_BD.unsqueeze(1)
        elif self.config.position == "sine":
            positions_TD = sine_positions(height, width, self.width, x_BTD.device)
            x_BTD = x_BTD + (self.config.position_scale * positions_TD).to(x_BTD.dtype)
        return Tokens(x_BTD, torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device), pooled_BD)

    def load_pretrained(self) -> None:
        if not self.config.weights:
            return
        state = _weights.read(self.config.name, self.config.weights)
        names = {}
        for key in self.backbone.state_dict():
            block, _, rest = key.partition(".")
            names[key] = f"{self._names[block]}.{rest}"
        ignorable = _backbones.layout(self.config.name, self.config.stem).keys
        self.report = _weights.load(self.backbone, state, names, ignorable, self.config.weights)
        log.info(
            "backbone: %d weights from %s, %d left", len(self.report.loaded), self.report.source, len(self.report.left)
        )

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        if self.config.weights:
            yield from (parameter for parameter in self.backbone.parameters() if parameter.requires_grad)


def _identifier(block: str) -> str:
    """torchvision's name of a block as a name within our chain, which may have no dots."""
    return block.replace(".", "_")
