"""The module of ``series``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmodel import parts
from vlmodel.layers import TransformerLayer, masked_mean
from vlmodel.tokens import Tokens
from vlmodel.weights import WeightsError

if TYPE_CHECKING:
    from vlmodel.modality.series import Config


class SeriesEncoder(parts.ModalityEncoder):
    """A token for every ``stride`` time steps: two convolutions with sine positions, then pre-norm Transformer layers.

    The stem is that of speech encoders (Radford et al. 2022, arXiv:2212.04356, section 2.2), its second convolution
    without overlap, as the patches of PatchTST (Nie et al. 2023, arXiv:2211.14730). The pooled vector is the mean of
    the real tokens. Time steps after a series' end are zeros in every layer of the stem, so that padding changes
    nothing.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels, width = config.channels, config.width
        self.register_buffer("mean_C", torch.tensor(config.mean or (0.0,) * channels))
        self.register_buffer("std_C", torch.tensor(config.std or (1.0,) * channels))
        self.steps = nn.Conv1d(channels, width, 3, padding=1)
        self.patches = nn.Conv1d(width, width, config.stride, stride=config.stride)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.expansion * width, config.dropout) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.projection) if config.projection else nn.Identity()
        self.width, self.feature_width = config.projection or width, width
        if config.frozen:
            self.freeze("steps", "patches", "layers", "norm")

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tokens:
        return self.from_features(*self.features(x_BTC=x_BTC, mask_BT=mask_BT))

    def features(self, x_BTC: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            mask_B1T = mask_BT.unsqueeze(1)
            x_BCT = ((x_BTC - self.mean_C) / self.std_C).transpose(1, 2) * mask_B1T
            x_BDT = F.gelu(self.steps(x_BCT)) * mask_B1T
            missing = -x_BDT.shape[2] % self.config.stride
            x_BTD = F.gelu(self.patches(F.pad(x_BDT, (0, missing)))).transpose(1, 2)
            # A token is real if its first time step is.
            token_mask_BT = mask_BT[:, :: self.config.stride]
            x_BTD = x_BTD + sine_positions(x_BTD.shape[1], self.config.width, x_BTD.device).to(x_BTD.dtype)
            for layer in self.layers:
                x_BTD, _ = layer(x_BTD, token_mask_BT)
            return self.norm(x_BTD), token_mask_BT

    def from_features(self, features_BTF: Tensor, mask_BT: Tensor) -> Tokens:
        # Cached features may have less precision than the weights.
        x_BTD = self.projection(features_BTF.to(self.norm.weight.dtype))
        return Tokens(x_BTD, mask_BT, masked_mean(x_BTD, mask_BT))

    def to_grid(self, weights_NT: Tensor) -> Tensor | None:
        """None: time has one dimension."""
        return None

    def load_pretrained(self) -> None:
        if not self.config.weights:
            return
        from safetensors.torch import load_file

        try:
            state = load_file(self.config.weights)
        except Exception as error:  # broken files raise anything
            raise WeightsError(
                f"inputs.NAME.weights={self.config.weights!r} cannot be read: {error}; name a .safetensors file"
            ) from error
        own = {name for name in self.state_dict() if not name.startswith("projection.")}
        if missing := sorted(own - set(state)):
            raise WeightsError(
                f"inputs.NAME.weights={self.config.weights!r} lacks {len(missing)} weights of these settings: "
                f"{', '.join(missing[:3])}; name the state dict of an encoder of the same settings"
            )
        try:
            self.load_state_dict({**self.state_dict(), **{name: state[name] for name in own}})
        except RuntimeError as error:
            raise WeightsError(f"inputs.NAME.weights={self.config.weights!r} are of other settings: {error}") from error

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        if self.config.weights:
            for module in (self.steps, self.patches, self.layers, self.norm):
                yield from (parameter for parameter in module.parameters() if parameter.requires_grad)


def sine_positions(length: int, width: int, device: torch.device) -> Tensor:
    """Fixed sine positions (T, D) for any length (Vaswani et al. 2017, section 3.5)."""
    half = (width + 1) // 2
    rates_D = torch.exp(torch.arange(half, device=device) * (-math.log(10_000.0) / half))
    angles_TD = torch.arange(length, device=device)[:, None] * rates_D
    return torch.cat([angles_TD.sin(), angles_TD.cos()], dim=1)[:, :width]
