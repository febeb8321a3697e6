"""The module of ``cnn``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlmodel import lora
from vlmodel.layers import parameter_names_by_stage
from vlmodel.tokens import Tokens
from vlmodel.vision import _backbones, _weights
from vlmodel.vision._encoder import BackboneEncoder, average_pool_to_grid, tokens_without_padding
from vlmodel.vision._positions import sine_positions

if TYPE_CHECKING:
    from vlmodel.vision.cnn import Config


class CNNEncoder(BackboneEncoder):
    """A vision encoder from torchvision: backbone, projection and positions.

    Several scales are concatenated, the finest first, with an embedding of the scale added to each cell; their pooled
    vector is the mean of the scales' means, so that the finest does not outweigh the others.
    """

    architecture = "vision.name, vision.stem and vision.stages"
    config: Config
    backbone: nn.Sequential

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        layout = _backbones.backbone_layout(config.name, config.stem)
        stages = config.stages or len(layout.stages)
        kept = layout.stages[stages - 1]
        first = stages - config.scales if config.output == "multiscale" else stages - 1
        self._ends = layout.stages[first:stages]
        self._channels_last = layout.channels_last
        self._names = {_submodule_name(name): name for name in layout.blocks[:kept]}
        self.backbone = nn.Sequential()
        for name, block in list(_backbones.backbone_blocks(_backbones.create_backbone(config.name, config.stem)))[
            :kept
        ]:
            self.backbone.add_module(_submodule_name(name), block)

        self._channels = channels = layout.channels[first:stages]
        self.width = config.projection or channels[-1]
        self.projection: nn.Module
        if config.output == "multiscale":
            self.projection = nn.ModuleList(nn.Linear(width, self.width) for width in channels)
            self.scale_LD = nn.Parameter(config.position_scale * torch.randn(len(channels), self.width))
        else:
            self.projection = nn.Linear(channels[-1], config.projection) if config.projection else nn.Identity()

        frozen = kept if config.frozen else layout.stages[config.frozen_stages - 1] if config.frozen_stages else 0
        self.freeze_submodules(*(f"backbone.{_submodule_name(name)}" for name in layout.blocks[:frozen]))
        if config.lora is not None:
            self.add_adapters("backbone", config.lora)
        self.backbone.to(memory_format=torch.channels_last)

    def feature_maps(self, pixels_BHWC: Tensor) -> list[Tensor]:
        """Compute the feature maps (B, C, H, W) of uint8 images at the ends of the stages that become tokens, the
        finest first.
        """
        x = self.normalise_pixels(pixels_BHWC)
        maps = []
        with self.backbone_gradient_mode():
            for i, block in enumerate(self.backbone, start=1):
                x = block(x)
                if i in self._ends:
                    maps.append(x.permute(0, 3, 1, 2) if self._channels_last else x)
        return maps

    def feature_grids(self, pixels_BHWC: Tensor) -> list[Tensor]:
        size = self.config.averaged_grid()
        return [average_pool_to_grid(map_BCHW, size) for map_BCHW in self.feature_maps(pixels_BHWC)]

    def tokens_from_grids(self, grids: Sequence[Tensor]) -> Tokens:
        if self.config.output == "multiscale":
            assert isinstance(self.projection, nn.ModuleList)
            scales = zip(grids, self.projection, self.scale_LD, strict=True)
            sequences, means = zip(*(self._token_sequence(*scale) for scale in scales), strict=True)
            x_BTD, pooled_BD = torch.cat(sequences, 1), torch.stack(means).mean(0)
        else:
            x_BTD, pooled_BD = self._token_sequence(grids[0], self.projection)
        return tokens_without_padding(x_BTD, pooled_BD)

    def grid_shapes(self) -> Sequence[tuple[int, int, int]]:
        config, channels = self.config, self._channels
        if (averaged := config.averaged_grid()) is not None:
            return [(*averaged, c) for c in channels]
        sizes = _backbones.feature_map_sizes(config.name, config.stem, self._ends, config.preprocessing().size)
        return [(*size, c) for size, c in zip(sizes, channels, strict=True)]

    def _token_sequence(
        self, grid_BHWC: Tensor, projection: nn.Module, scale_D: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the tokens (B, T, D) of a grid, and their mean (B, D) before positions are added."""
        x_BTD = self.project_grid(grid_BHWC, projection)
        if scale_D is not None:
            x_BTD = x_BTD + scale_D
        pooled_BD = x_BTD.mean(1)
        if self.config.position == "sine" and self.config.output != "pooled":
            height, width = grid_BHWC.shape[1:3]
            positions_TD = sine_positions(height, width, self.width, x_BTD.device)
            x_BTD = x_BTD + (self.config.position_scale * positions_TD).to(x_BTD.dtype)
        return x_BTD, pooled_BD

    def parameter_names_by_stage(self) -> list[list[str]]:
        return parameter_names_by_stage(self.backbone, "")

    def load_pretrained(self) -> None:
        if not self.config.weights:
            return
        state = _weights.read_state_dict(self.config.name, self.config.weights)
        names = {}
        for key in lora.names_without_adapters(self.backbone).values():
            block, _, rest = key.partition(".")
            names[key] = f"{self._names[block]}.{rest}"
        self.load_backbone_weights(state, names, _backbones.backbone_layout(self.config.name, self.config.stem).keys)


def _submodule_name(block: str) -> str:
    """Return the name of a submodule for a block of torchvision: its name there, without dots."""
    return block.replace(".", "_")
