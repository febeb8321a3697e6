"""What the encoders of sequences share: Transformer layers over the tokens of a stem, cached features, weights,
freezing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.layers import TransformerLayer, masked_mean
from vlmodel.tokens import Tokens
from vlmodel.weights import WeightsError

if TYPE_CHECKING:
    from vlmodel.modality._settings import SequenceSettings


class SequenceEncoder(parts.ModalityEncoder):
    """The base class of encoders of sequences: a stem makes tokens, sine positions are added, pre-norm Transformer
    layers and a projection follow.

    The pooled vector is the mean of the real tokens. A subclass makes the modules of its stem, then calls
    ``build_layers``, and defines ``stem``.

    Attributes:
        stem_modules: names of the modules that ``stem`` uses.
    """

    stem_modules: ClassVar[tuple[str, ...]]

    def __init__(self, config: SequenceSettings) -> None:
        super().__init__()
        self.config = config
        self.width, self.feature_width = config.projection or config.width, config.width

    def build_layers(self) -> None:
        """Create the Transformer layers, and freeze stem and layers if ``frozen`` is set."""
        config, width = self.config, self.config.width
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.expansion * width, config.dropout) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.projection) if config.projection else nn.Identity()
        if config.frozen:
            self.freeze_submodules(*self.stem_modules, "layers", "norm")

    def stem(self, **arrays: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, width) without positions, and a mask of which are real, (B, T)."""
        raise NotImplementedError

    def forward(self, **arrays: Tensor) -> Tokens:
        """Return the tokens, given the arrays of ``ModalityPart.collate``."""
        return self.tokens_from_features(*self.compute_features(**arrays))

    def compute_features(self, **arrays: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            x_BTD, mask_BT = self.stem(**arrays)
            x_BTD = x_BTD + sine_positions(x_BTD.shape[1], self.config.width, x_BTD.device).to(x_BTD.dtype)
            for layer in self.layers:
                x_BTD, _ = layer(x_BTD, mask_BT)
            return self.norm(x_BTD), mask_BT

    def tokens_from_features(self, features_BTF: Tensor, mask_BT: Tensor) -> Tokens:
        # Cached features may have less precision than the weights.
        x_BTD = self.projection(features_BTF.to(self.norm.weight.dtype))
        return Tokens(x_BTD, mask_BT, masked_mean(x_BTD, mask_BT))

    def weights_to_grid(self, weights_NT: Tensor) -> Tensor | None:
        """Return None: the tokens are a sequence, and no grid."""
        return None

    def weights_over_time(self, weights_NT: Tensor) -> Tensor | None:
        return weights_NT

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
            for name in (*self.stem_modules, "layers", "norm"):
                module = self.get_submodule(name)
                yield from (parameter for parameter in module.parameters() if parameter.requires_grad)


def sine_positions(length: int, width: int, device: torch.device) -> Tensor:
    """Compute fixed sine positions (T, D) for any length (Vaswani et al. 2017, section 3.5)."""
    half = (width + 1) // 2
    rates_D = torch.exp(torch.arange(half, device=device) * (-math.log(10_000.0) / half))
    angles_TD = torch.arange(length, device=device)[:, None] * rates_D
    return torch.cat([angles_TD.sin(), angles_TD.cos()], dim=1)[:, :width]
