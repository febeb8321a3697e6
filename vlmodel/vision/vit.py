"""Vision Transformers of torchvision (Dosovitskiy et al. 2021) for any image size, whole or cut to fewer layers."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from vlmodel import lora
from vlmodel.config import ConfigError
from vlmodel.images.preprocessing import ImagePreprocessing, ImageSize, describe_size
from vlmodel.layers import parameter_names_by_stage
from vlmodel.tokens import Tokens
from vlmodel.vision import _weights
from vlmodel.vision._encoder import BackboneEncoder, average_pool_to_grid, tokens_without_padding
from vlmodel.vision._settings import BackboneConfig

log = logging.getLogger(__name__)

_POSITIONS = "encoder.pos_embedding"


class Config(BackboneConfig):
    """Settings of a torchvision ViT."""

    kind: Literal["vit"] = "vit"
    name: str = "vit_b_16"
    """A ViT of torchvision.models.list_models(); settings that are null are taken from it."""
    image_size: ImageSize = (224, 224)
    """Height and width of the images, in pixels, or the side of a square: processor.image_size. Positions of weights
    for another size are resampled."""
    patch_size: int | None = Field(None, ge=1)
    """Side of a patch, in pixels, which must divide the image size; each patch is a token."""
    width: int | None = Field(None, ge=1)
    """Width of the tokens."""
    depth: int | None = Field(None, ge=1)
    """Number of layers; with weights, the first ones are kept."""
    heads: int | None = Field(None, ge=1)
    """Attention heads."""
    feed_forward: int | None = Field(None, ge=1)
    """Width of the feed-forward layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of embeddings and feed-forward layers."""
    output: Literal["grid", "pooled"] = "grid"
    """A token for each patch (or cell of ``grid``), or the pooled vector as the only token."""
    pooling: Literal["cls", "mean"] = "cls"
    """The pooled vector: the class token, or the mean of the patches."""
    frozen_layers: int = Field(0, ge=0)
    """Do not train the embeddings and this many layers."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        _check_architecture(self.name)
        shape = self.architecture_sizes()
        if any(length % shape.patch_size for length in self.image_size):
            height, width = (max(1, round(length / shape.patch_size)) * shape.patch_size for length in self.image_size)
            raise ValueError(
                f"patch_size={shape.patch_size} does not divide image_size={describe_size(self.image_size)}; choose a "
                f"patch size that does, or an image size such as {describe_size((height, width))}"
            )
        if shape.width % shape.heads:
            raise ValueError(f"width={shape.width} cannot be shared by heads={shape.heads}; make it a multiple")
        if self.frozen_layers > shape.depth:
            raise ValueError(f"frozen_layers={self.frozen_layers} is more than the {shape.depth} layers (depth)")
        return self

    def architecture_sizes(self) -> ViTSizes:
        """The sizes (width, depth, ...) of the ViT that is built."""
        default = _sizes_and_weight_names(self.name)[0]
        chosen = {field.name: getattr(self, field.name) for field in fields(ViTSizes)}
        return replace(default, **{name: value for name, value in chosen.items() if value is not None})

    def build(self) -> ViTEncoder:
        return ViTEncoder(self)

    def preprocessing(self) -> ImagePreprocessing:
        return replace(super().preprocessing(), size=self.image_size)

    def check_image_size(self, size: tuple[int, int]) -> None:
        if size != self.image_size:
            raise ConfigError(
                f"processor.image_size={describe_size(size)}, and model.vision has a position for each patch of images "
                f"of image_size={describe_size(self.image_size)}; set both (model.vision.image_size) to one value"
            )


@dataclass(frozen=True)
class ViTSizes:
    """The sizes of a ViT, as in ``Config``."""

    patch_size: int
    width: int
    depth: int
    heads: int
    feed_forward: int


class ViTEncoder(BackboneEncoder):
    """A torchvision ViT as a vision encoder: one token for each patch; the class token is the pooled vector."""

    architecture = "vision.name, vision.patch_size, vision.width, vision.depth and vision.feed_forward"
    config: Config
    backbone: Any

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        from torchvision.models import VisionTransformer

        shape = config.architecture_sizes()
        height, width = config.image_size
        self._patches = height // shape.patch_size, width // shape.patch_size
        self.backbone = VisionTransformer(
            height,
            shape.patch_size,
            shape.depth,
            shape.heads,
            shape.width,
            shape.feed_forward,
            config.dropout,
        )
        self.backbone.heads = nn.Identity()
        if height != width:  # torchvision's own are those of a square
            positions_1TD = torch.empty(1, 1 + math.prod(self._patches), shape.width).normal_(std=0.02)
            self.backbone.encoder.pos_embedding = nn.Parameter(positions_1TD)
        self.width = config.projection or shape.width
        self.projection = nn.Linear(shape.width, config.projection) if config.projection else nn.Identity()
        self._freeze_first_layers(config.frozen_layers)
        if config.frozen:
            self.freeze_submodules("backbone")
        elif config.lora is not None:
            self.add_adapters("backbone", config.lora)
        self.backbone.to(memory_format=torch.channels_last)

    def encode(self, pixels_BHWC: Tensor) -> Tensor:
        """Encode uint8 images to (B, 1 + patches, width): the class token, then the patches row by row."""
        x_BCHW = self.normalise_pixels(pixels_BHWC)
        with self.backbone_gradient_mode():
            patches_BTD = self.backbone.conv_proj(x_BCHW).flatten(2).transpose(1, 2)
            class_B1D = self.backbone.class_token.expand(len(patches_BTD), -1, -1)
            encoded_BTD: Tensor = self.backbone.encoder(torch.cat([class_B1D, patches_BTD], 1))
        return encoded_BTD

    def feature_grids(self, pixels_BHWC: Tensor) -> list[Tensor]:
        """Return the class token as a grid of one cell, the patches as a grid, or both."""
        encoded_BTD = self.encode(pixels_BHWC)
        grids = [encoded_BTD[:, :1].unsqueeze(1)] if self.config.pooling == "cls" else []
        if self._needs_patch_tokens:
            map_BCHW = encoded_BTD[:, 1:].transpose(1, 2).unflatten(2, self._patches)
            grids.append(average_pool_to_grid(map_BCHW, self.config.averaged_grid()))
        return grids

    def tokens_from_grids(self, grids: Sequence[Tensor]) -> Tokens:
        if self.config.pooling == "cls":
            class_BHWC, *patches = grids
            pooled_BD = self.activation(self.projection(class_BHWC.flatten(1)))
            x_BTD = self.project_grid(patches[0], self.projection) if patches else pooled_BD.unsqueeze(1)
        else:
            x_BTD = self.project_grid(grids[0], self.projection)
            pooled_BD = x_BTD.mean(1)
        return tokens_without_padding(x_BTD, pooled_BD)

    def grid_shapes(self) -> Sequence[tuple[int, int, int]]:
        channels = self.config.architecture_sizes().width
        layout = [(1, 1, channels)] if self.config.pooling == "cls" else []
        return layout + (
            [(*(self.config.averaged_grid() or self._patches), channels)] if self._needs_patch_tokens else []
        )

    @property
    def _needs_patch_tokens(self) -> bool:
        return self.config.output == "grid" or self.config.pooling == "mean"

    def parameter_names_by_stage(self) -> list[list[str]]:
        return parameter_names_by_stage(self.backbone, "encoder.layers")

    def load_pretrained(self) -> None:
        if not self.config.weights:
            return
        state = _weights.read_state_dict(self.config.name, self.config.weights)
        positions = state.get(_POSITIONS)
        if positions is not None and positions.shape != self.backbone.encoder.pos_embedding.shape:
            state = self._resample_positions(state, positions)
        self.load_backbone_weights(
            state,
            {n: n for n in lora.names_without_adapters(self.backbone).values()},
            _sizes_and_weight_names(self.config.name)[1],
        )

    def _resample_positions(self, state: dict[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
        """Resample the positions in ``state`` to this image size, if they form a square grid; ``load_backbone_weights``
        refuses others.
        """
        side = math.isqrt(max(0, positions.shape[1] - 1)) if positions.ndim == 3 and len(positions) == 1 else 0
        if not side or side**2 + 1 != positions.shape[1]:
            return state
        log.info("positions: resampled from %d x %d patches to %d x %d", side, side, *self._patches)
        of_class_11D, of_patches_1PD = positions.float().split([1, side**2], 1)
        grid_1DHW = of_patches_1PD.transpose(1, 2).unflatten(2, (side, side))
        # As torchvision's own ``interpolate_embeddings``, which makes squares only.
        grid_1DHW = functional.interpolate(grid_1DHW, self._patches, mode="bicubic", align_corners=True)
        return {**state, _POSITIONS: torch.cat([of_class_11D, grid_1DHW.flatten(2).transpose(1, 2)], 1)}

    def _freeze_first_layers(self, layers: int) -> None:
        """Freeze the embeddings and the first ``layers`` layers, if any."""
        if not layers:
            return
        for parameter in (self.backbone.class_token, self.backbone.encoder.pos_embedding):
            parameter.requires_grad_(False)
        frozen = [f"encoder.layers.encoder_layer_{i}" for i in range(layers)]
        self.freeze_submodules(*(f"backbone.{name}" for name in ("conv_proj", "encoder.dropout", *frozen)))


def _check_architecture(name: str) -> None:
    """Raise ValueError if torchvision has no ViT ``name``."""
    import torchvision

    known = [n for n in torchvision.models.list_models(module=torchvision.models) if n.startswith("vit_")]
    if name not in known:
        raise ValueError(f"there is no ViT {name!r}; choose one of {', '.join(known)}")


@functools.lru_cache(maxsize=8)
def _sizes_and_weight_names(name: str) -> tuple[ViTSizes, frozenset[str]]:
    """Return the sizes of a ViT of torchvision and the names of all its weights, including its classifier's."""
    import torchvision

    with torch.device("meta"):
        model: Any = torchvision.models.get_model(name, weights=None)
    first = model.encoder.layers.encoder_layer_0
    shape = ViTSizes(model.patch_size, model.hidden_dim, len(model.encoder.layers), first.num_heads, model.mlp_dim)
    return shape, frozenset(model.state_dict())
