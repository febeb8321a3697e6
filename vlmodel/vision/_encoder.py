"""What the vision encoders share: settings, normalisation of pixels, tokens of a feature map, weights, freezing."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlmodel import lora, parts
from vlmodel.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from vlmodel.layers import ACTIVATIONS
from vlmodel.tokens import Tokens
from vlmodel.vision import _weights
from vlmodel.vision._settings import BackboneConfig

log = logging.getLogger(__name__)


class BackboneEncoder(parts.VisionEncoder):
    """The base class of vision encoders with a backbone: normalises pixels, runs ``backbone`` and projects its features
    to tokens.

    Subclasses make ``backbone`` and ``projection``, and define the two halves of ``forward``: ``feature_grids`` and
    ``tokens_from_grids``. BatchNorm keeps its statistics where the backbone is frozen, and uses those of the batch
    where it is trained.

    Attributes:
        architecture: the settings that decide whether weights fit, for errors.
        report: what was loaded, once ``load_pretrained`` has read weights.
    """

    config: BackboneConfig
    backbone: nn.Module
    mean_C: Tensor
    std_C: Tensor
    architecture: str

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.activation = ACTIVATIONS[config.activation]()
        self.register_buffer("mean_C", torch.tensor(config.mean or IMAGENET_MEAN))
        self.register_buffer("std_C", torch.tensor(config.std or IMAGENET_STD))
        self.report: _weights.WeightsReport | None = None

    def normalise_pixels(self, pixels_BHWC: Tensor) -> Tensor:
        """Normalise uint8 images by mean and standard deviation, and reorder them to (B, C, H, W)."""
        # A permuted view of BHWC is torch's channels-last layout: no copy is made.
        pixels_BCHW = pixels_BHWC.permute(0, 3, 1, 2)
        scale_C = 1 / (255 * self.std_C)
        return pixels_BCHW * scale_C[:, None, None] - (self.mean_C / self.std_C)[:, None, None]

    def backbone_gradient_mode(self) -> torch.autograd.grad_mode.set_grad_enabled:
        """The context in which the backbone runs: without gradients if it is frozen."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen)

    def feature_grids(self, pixels_BHWC: Tensor) -> list[Tensor]:
        """Compute the used outputs of the backbone: grids of features (B, H, W, C) of the configured size."""
        raise NotImplementedError

    def tokens_from_grids(self, grids: Sequence[Tensor]) -> Tokens:
        """Compute the tokens from the grids that ``feature_grids`` returns."""
        raise NotImplementedError

    def grid_shapes(self) -> Sequence[tuple[int, int, int]]:
        """Return the shape (height, width, channels) of each of the ``feature_grids`` of images of the configured
        size.
        """
        raise NotImplementedError

    def weights_to_grid(self, weights_NT: Tensor) -> Tensor | None:
        # Before the last grid, a pooled vector may be one of one cell; of several scales all are tokens.
        shapes = self.grid_shapes() if getattr(self.config, "output", "") == "multiscale" else self.grid_shapes()[-1:]
        height, width, _ = shapes[0]
        if any(shape[:2] != (height, width) for shape in shapes):
            return None  # maps of different sizes cannot be added
        return weights_NT.unflatten(1, (-1, height, width)).sum(1)

    def forward(self, pixels_BHWC: Tensor) -> Tokens:
        return self.tokens_from_grids(self.feature_grids(pixels_BHWC))

    def compute_features(self, pixels_BHWC: Tensor) -> Tensor:
        return torch.cat([grid_BHWC.flatten(1) for grid_BHWC in self.feature_grids(pixels_BHWC)], 1)

    def tokens_from_features(self, features_BF: Tensor) -> Tokens:
        numbers = features_BF.shape[1]
        layout = self.grid_shapes()
        sizes = [math.prod(shape) for shape in layout]
        if sum(sizes) != numbers:
            raise ValueError(
                f"features of {numbers} numbers an image are none of this encoder with this grid and image size"
            )
        # Cached features may have less precision than the weights.
        pieces = features_BF.to(self.mean_C.dtype).split(sizes, 1)
        return self.tokens_from_grids([piece.unflatten(1, shape) for piece, shape in zip(pieces, layout, strict=True)])

    def project_grid(self, grid_BHWC: Tensor, projection: nn.Module) -> Tensor:
        """Project the cells of a grid to tokens (B, T, D), row by row."""
        x_BTD: Tensor = self.activation(projection(grid_BHWC.flatten(1, 2)))
        return x_BTD

    def load_backbone_weights(
        self,
        state: Mapping[str, Tensor],
        names: Mapping[str, str],
        known: frozenset[str],
        pairs: _weights.Pairs = (),
    ) -> None:
        """Copy the weights in ``state`` into the backbone; its weight ``key`` is called ``names[key]`` in ``state``.

        Args:
            known: all names of the whole network, of which ``state`` may have more than the backbone uses.
            pairs: names in the source and here, where they differ.
        """
        named = {name: names[plain] for name, plain in lora.names_without_adapters(self.backbone).items()}
        report = _weights.load_backbone_state(
            self.backbone, state, named, known, self.config.weights, self.architecture, self.config.strict,
            by_order=hasattr(self.config, "match"),
        )  # fmt: skip
        self.report = replace(report, pairs=tuple(pairs))
        log.info("vision: %s", self.report)

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        yield from itertools.chain.from_iterable(self.pretrained_layers())

    def pretrained_layers(self) -> list[list[nn.Parameter]]:
        if not self.config.weights or self.config.lora is not None:
            return []
        own = dict(self.backbone.named_parameters())
        return [[own[name] for name in names if own[name].requires_grad] for names in self.parameter_names_by_stage()]

    def parameter_names_by_stage(self) -> Sequence[Collection[str]]:
        """Group the names of the backbone's parameters: those of the stem, of each stage, and of what follows
        the last.
        """
        raise NotImplementedError


def tokens_without_padding(x_BTD: Tensor, pooled_BD: Tensor) -> Tokens:
    """Make ``Tokens`` all of which are real."""
    return Tokens(x_BTD, torch.ones(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device), pooled_BD)


def average_pool_to_grid(map_BCHW: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Convert a feature map to a grid (B, H, W, C), averaged to these rows and columns if they are given."""
    if size is not None:
        map_BCHW = functional.adaptive_avg_pool2d(map_BCHW, size)
    return map_BCHW.permute(0, 2, 3, 1)
