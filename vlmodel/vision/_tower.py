"""What the vision encoders of timm and transformers share: a backbone that returns feature maps or tokens of an image,
and perhaps a pooled vector.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlmodel.config import ConfigError
from vlmodel.images.preprocessing import ImagePreprocessing
from vlmodel.tokens import Tokens
from vlmodel.vision._encoder import BackboneEncoder, average_pool_to_grid, tokens_without_padding
from vlmodel.vision._positions import sine_positions
from vlmodel.vision._settings import BackboneConfig


class TowerConfig(BackboneConfig):
    """Settings that the vision towers of timm and transformers share.

    Subclasses define ``create_backbone``, which makes the backbone, and ``run_backbone``, which runs it.
    """

    non_backbone_settings: ClassVar[frozenset[str]] = BackboneConfig.non_backbone_settings | {
        "match",
        "position",
        "position_scale",
    }

    settings: dict[str, Any] = {}
    """Further arguments of the architecture, by the library's own names."""
    output: Literal["grid", "multiscale", "pooled"] = "grid"
    """A token for each cell of the last map (or patch), or of those of the last ``scales`` stages; or one token."""
    scales: int = Field(2, ge=1)
    """With output "multiscale": how many of the last stages have tokens, each projected to one width."""
    pooling: Literal["own", "mean"] = "own"
    """The pooled vector: the tower's own (class token, attention, mean), or the mean of the tokens. It is the mean with
    output "multiscale" and where the tower has none."""
    position: Literal["sine", "none"] | None = None
    """Position added to grid tokens; null adds sines to the maps of convolutional towers, and nothing to tokens."""
    position_scale: float = Field(0.1, gt=0, allow_inf_nan=False)
    """Amplitude of the positions."""
    frozen_stages: int = Field(0, ge=0)
    """Do not train the stem (embeddings) and this many stages (layers of a transformer)."""
    match: Literal["name", "order"] = "name"
    """How tensors of a file are found: by their names, or by their order and shapes where only names differ."""

    def create_backbone(self) -> nn.Module:
        """Create the backbone with new weights on the current device.

        Raises:
            ConfigError: it cannot be made with these settings.
        """
        raise NotImplementedError

    def run_backbone(self, backbone: nn.Module, x_BCHW: Tensor) -> BackboneOutputs:
        """Run the backbone on normalised images."""
        raise NotImplementedError

    def parameter_names_by_stage(self, backbone: nn.Module) -> Sequence[Collection[str]]:
        """Group the names of the backbone's parameters: those of the stem, of each stage, and of what follows
        the last.
        """
        raise NotImplementedError

    def image_height_and_width(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        raise NotImplementedError

    def preprocessing(self) -> ImagePreprocessing:
        trained = self.preprocessing_of_weights() if self.weights else ImagePreprocessing(self.image_height_and_width())
        return replace(trained, size=self.image_size) if self.image_size else trained

    def preprocessing_if_known(self) -> ImagePreprocessing | None:
        return None if self.preprocessing_needs_files() else self.preprocessing()

    def preprocessing_of_weights(self) -> ImagePreprocessing:
        """The image preprocessing with which the weights were trained.

        Raises:
            WeightsError: it cannot be read.
        """
        raise NotImplementedError

    def preprocessing_needs_files(self) -> bool:
        """Whether ``preprocessing`` must read files."""
        raise NotImplementedError

    def resolve_settings(self, image_size: tuple[int, int]) -> Self:
        """Return a copy with everything that ``build`` needs, see ``VisionPart``.

        Raises:
            ConfigError: mean or standard deviation are not those of the weights.
            WeightsError: what the weights were trained with cannot be read.
        """
        own = self.preprocessing()
        for name, given, trained in (("mean", self.mean, own.mean), ("std", self.std, own.std)):
            if own.stated and given not in (None, trained):
                raise ConfigError(
                    f"model.vision.{name}={given}, and the weights {self.weights!r} were trained with {trained}; leave "
                    f"{name} out"
                )
        return self.model_copy(
            update={
                "image_size": self.image_size or image_size,
                "mean": self.mean or own.mean,
                "std": self.std or own.std,
            }
        )

    def can_build_without_files(self) -> bool:
        """Whether the tower can be built without reading files."""
        return True

    def has_projection(self) -> bool:
        return self.projection is not None or self.output == "multiscale"

    def output_shapes(self) -> OutputShapes:
        """Compute the shapes of the tower's outputs for images of the configured size on the meta device; cached.

        Raises:
            ConfigError: it cannot be made, or does not take such images.
        """
        return _cached_output_shapes(type(self), json.dumps(self.model_dump(mode="json"), sort_keys=True))

    def compute_output_shapes(self) -> OutputShapes:
        """Compute the shapes of ``output_shapes`` without the cache."""
        with torch.device("meta"), torch.enable_grad():
            backbone = self.create_backbone().eval()
            called = _record_called_layers(backbone)
            try:
                outputs = self.run_backbone(backbone, torch.zeros(1, 3, *self.image_height_and_width()))
            except (RuntimeError, ValueError, AssertionError) as error:
                height, width = self.image_height_and_width()
                reason = str(error).strip().partition("\n")[0]
                raise ConfigError(
                    f"model.vision cannot take images of {height} x {width} pixels ({reason}); choose another "
                    "processor.image_size"
                ) from error
            used = outputs.grids if self.output != "pooled" or not self.uses_own_pooling(outputs.pooled_BF) else []
            pooled = (
                [outputs.pooled_BF]
                if outputs.pooled_BF is not None and self.uses_own_pooling(outputs.pooled_BF)
                else []
            )
            if not used and not pooled:
                raise ConfigError(
                    "this tower of model.vision gives no grid of tokens; set output='pooled' and pooling='own'"
                )
            sum(out.float().sum() for out in (*used, *pooled)).backward()  # type: ignore[union-attr]
        return OutputShapes(
            tuple((grid.shape[1], grid.shape[2], grid.shape[3]) for grid in used),
            pooled[0].shape[1] if pooled else 0,
            outputs.is_sequence,
            frozenset(name for name, p in backbone.named_parameters() if p.grad is None),
            frozenset(
                path for path, layer in backbone.named_modules() if isinstance(layer, nn.Linear) and path not in called
            ),
            tuple(frozenset(names) for names in self.parameter_names_by_stage(backbone)),
        )

    def uses_own_pooling(self, pooled_BF: Tensor | None) -> bool:
        """Whether the tower's own pooled vector is used."""
        return self.pooling == "own" and self.output != "multiscale" and pooled_BF is not None

    def build(self) -> VisionTower:
        return VisionTower(self)

    def check_image_size(self, size: tuple[int, int]) -> None:
        super().check_image_size(size)
        if self.can_build_without_files():
            self.model_copy(update={"image_size": size}).output_shapes()

    @model_validator(mode="after")
    def _check_output(self) -> TowerConfig:
        if self.grid is not None and self.output == "pooled" and self.pooling == "mean":
            raise ValueError("grid is of no use with output='pooled'; leave grid out")
        return self


class BackboneOutputs(NamedTuple):
    """The outputs of a backbone for B images.

    Attributes:
        grids: features of the cells of a grid (B, H, W, C), the finest grid first; empty if its tokens are no grid.
        pooled_BF: its own pooled vector; None if it has none.
        is_sequence: whether it is a transformer over a sequence of patches, which has positions of its own.
    """

    grids: list[Tensor]
    pooled_BF: Tensor | None
    is_sequence: bool


class OutputShapes(NamedTuple):
    """The shapes of those outputs of a backbone that are used, and the names of its parameters.

    Attributes:
        grids: (height, width, channels) of each grid that is used.
        pooled: width of the tower's own pooled vector; 0 if it is not used.
        is_sequence: as of ``BackboneOutputs``.
        unreached: names of the parameters on which no used output depends.
        never_called: paths of the linear layers that are not called: no output depends on them, or the tower reads
            their weights itself, as timm's BEiT, EVA and Swin V2 do.
        stages: names of the parameters by stage.
    """

    grids: tuple[tuple[int, int, int], ...]
    pooled: int
    is_sequence: bool
    unreached: frozenset[str]
    never_called: frozenset[str]
    stages: tuple[frozenset[str], ...]


def _record_called_layers(backbone: nn.Module) -> set[str]:
    """Record the paths of the linear layers that are called from now on."""
    called: set[str] = set()
    for path, layer in backbone.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda *_, path=path: called.add(path))
    return called


@functools.lru_cache(maxsize=64)
def _cached_output_shapes(config: type[TowerConfig], settings: str) -> OutputShapes:
    # Not validated, as validation may measure.
    values = json.loads(settings)
    size = values.get("image_size")
    return config.model_construct(**{**values, "image_size": tuple(size) if size else None}).compute_output_shapes()


class VisionTower(BackboneEncoder):
    """A vision encoder from timm or transformers: backbone, projection and positions.

    Several scales are concatenated, the finest first, with an embedding of the scale added to each cell; their pooled
    vector is the mean of the scales' means. Parameters on which no token depends are not trained.
    """

    architecture = "vision.name and vision.settings"
    config: TowerConfig

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        self._shapes = measured = config.output_shapes()
        self.backbone = config.create_backbone()
        channels = [c for _, _, c in measured.grids] or [measured.pooled]
        self.width = config.projection or channels[-1]
        self.projection: nn.Module
        if config.output == "multiscale":
            self.projection = nn.ModuleList(nn.Linear(width, self.width) for width in channels)
            self.scale_LD = nn.Parameter(config.position_scale * torch.randn(len(channels), self.width))
        else:
            self.projection = nn.Linear(channels[-1], self.width) if config.projection else nn.Identity()
        self.pooled_projection: nn.Module | None = None
        if measured.grids and measured.pooled not in (0, channels[-1]):
            # The tower widens its map before it pools it, as MobileNetV3 does.
            self.pooled_projection = nn.Linear(measured.pooled, self.width)
        self._freeze_backbone(config)
        self.backbone.to(memory_format=torch.channels_last)

    def _freeze_backbone(self, config: TowerConfig) -> None:
        stages = self._shapes.stages
        if config.frozen:
            self.freeze_submodules("backbone")
        elif config.lora is not None:
            self.add_adapters("backbone", config.lora, self._shapes.never_called)
            layers = {name.rpartition(".")[0] for name in self._shapes.unreached}
            for name, parameter in self.backbone.named_parameters():
                if name.partition(".lora_")[0] in layers:
                    parameter.requires_grad_(False)
            return
        elif config.frozen_stages:
            frozen = frozenset().union(*stages[: 1 + config.frozen_stages])
            self.freeze_submodules(
                *(f"backbone.{name}" for name in find_modules_containing_only(self.backbone, frozen))
            )
            for name in frozen:
                self.backbone.get_parameter(name).requires_grad_(False)
        for name in self._shapes.unreached:
            self.backbone.get_parameter(name).requires_grad_(False)

    def parameter_names_by_stage(self) -> Sequence[Collection[str]]:
        stages = self._shapes.stages
        known = frozenset().union(*stages)
        return [*stages, [name for name, _ in self.backbone.named_parameters() if name not in known]]

    def feature_grids(self, pixels_BHWC: Tensor) -> list[Tensor]:
        """Return the tower's own pooled vector as a grid of one cell, the grids of features, or both."""
        x_BCHW = self.normalise_pixels(pixels_BHWC)
        with self.backbone_gradient_mode():
            outputs = self.config.run_backbone(self.backbone, x_BCHW)
        grids = []
        if self._shapes.pooled:
            assert outputs.pooled_BF is not None
            grids.append(outputs.pooled_BF[:, None, None])
        if self._shapes.grids:
            size = self.config.averaged_grid()
            grids += [average_pool_to_grid(grid_BHWC.permute(0, 3, 1, 2), size) for grid_BHWC in outputs.grids]
        return grids

    def tokens_from_grids(self, grids: Sequence[Tensor]) -> Tokens:
        if self.config.output == "multiscale":
            assert isinstance(self.projection, nn.ModuleList)
            scales = zip(grids, self.projection, self.scale_LD, strict=True)
            sequences = [self.project_grid(grid, projection) + scale_D for grid, projection, scale_D in scales]
            pooled_BD = torch.stack([x_BTD.mean(1) for x_BTD in sequences]).mean(0)
            pairs = zip(sequences, grids, strict=True)
            return tokens_without_padding(
                torch.cat([self._add_positions(x_BTD, grid) for x_BTD, grid in pairs], 1), pooled_BD
            )
        if not self._shapes.pooled:
            x_BTD = self.project_grid(grids[0], self.projection)
            return tokens_without_padding(self._add_positions(x_BTD, grids[0]), x_BTD.mean(1))
        pooled_BD = self.project_grid(grids[0], self.pooled_projection or self.projection)[:, 0]
        if len(grids) == 1:
            return tokens_without_padding(pooled_BD.unsqueeze(1), pooled_BD)
        x_BTD = self.project_grid(grids[1], self.projection)
        tokens = tokens_without_padding(self._add_positions(x_BTD, grids[1]), pooled_BD)
        return _connect_gradients(tokens) if self.training and torch.is_grad_enabled() else tokens

    def grid_shapes(self) -> Sequence[tuple[int, int, int]]:
        pooled = [(1, 1, self._shapes.pooled)] if self._shapes.pooled else []
        size = self.config.averaged_grid()
        return pooled + [(*(size or (height, width)), channels) for height, width, channels in self._shapes.grids]

    def _add_positions(self, x_BTD: Tensor, grid_BHWC: Tensor) -> Tensor:
        position = self.config.position or ("none" if self._shapes.is_sequence else "sine")
        if position == "none" or self.config.output == "pooled":
            return x_BTD
        positions_TD = sine_positions(grid_BHWC.shape[1], grid_BHWC.shape[2], self.width, x_BTD.device)
        return x_BTD + (self.config.position_scale * positions_TD).to(x_BTD.dtype)


def _connect_gradients(tokens: Tokens) -> Tokens:
    """Add zero times the pooled vector to the tokens, and zero times the tokens to the pooled vector, so that all
    parameters get a gradient: not every fusion reads both, and data-parallel training waits for every gradient.
    """
    of_tokens_BD, of_pooled_B1D = 0 * tokens.x_BTD.mean(1), 0 * tokens.pooled_BD.unsqueeze(1)
    return Tokens(tokens.x_BTD + of_pooled_B1D, tokens.mask_BT, tokens.pooled_BD + of_tokens_BD)


def infer_token_grid(
    tokens: int, size: tuple[int, int], strides: Iterable[int], extra: Collection[int]
) -> tuple[int, int] | None:
    """Infer the numbers of rows and columns of the grid that a sequence of tokens forms; None if it forms none.

    Args:
        tokens: number of tokens, including those before the grid.
        size: height and width of the image.
        strides: possible numbers of pixels per cell, tried in order.
        extra: possible numbers of tokens before the grid, such as class tokens.
    """
    for stride in strides:
        for height, width in ((-(-size[0] // stride), -(-size[1] // stride)), (size[0] // stride, size[1] // stride)):
            if height * width and tokens - height * width in extra:
                return height, width
    return None


def find_modules_containing_only(root: nn.Module, parameters: Collection[str], prefix: str = "") -> list[str]:
    """Find the largest modules below ``root`` that contain only the named parameters; returns their names."""
    found = []
    for name, child in root.named_children():
        own = [f"{prefix}{name}.{parameter}" for parameter, _ in child.named_parameters()]
        if own and all(parameter in parameters for parameter in own):
            found.append(f"{prefix}{name}")
        else:
            found += find_modules_containing_only(child, parameters, f"{prefix}{name}.")
    return found
