"""The module of the encoder ``video``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlmodel import parts
from vlmodel.layers import TransformerLayer, masked_mean
from vlmodel.modality._sequence import sine_positions
from vlmodel.tokens import Tokens

if TYPE_CHECKING:
    from vlmodel.modality.video import Config


class VideoEncoder(parts.ModalityEncoder):
    """Encodes videos: each frame by a vision encoder, then pre-norm Transformer layers over the tokens of all frames.

    A vision encoder for each frame and attention over time is the late fusion of video Transformers (Arnab et al. 2021,
    arXiv:2103.15691, model 2). Only real frames are encoded, so that neither padding nor its share in a batch's
    statistics changes anything. The pooled vector is the mean of the real tokens.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.vision: parts.VisionEncoder = config.vision.build()
        self.adapter = nn.Linear(self.vision.width, config.width)
        self.layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.expansion * config.width, config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, config.projection) if config.projection else nn.Identity()
        self.width = config.projection or config.width

    @property
    def feature_width(self) -> int:  # type: ignore[override]
        """Find the number of features of one frame by running the vision encoder on a blank image."""
        return int(self._encode_blank_frame(self.vision.compute_features).shape[1])

    def forward(self, frames_BTHWC: Tensor, mask_BT: Tensor) -> Tokens:
        return self._attend_over_time(*self._frames_to_sequence(self.vision(frames_BTHWC[mask_BT]), mask_BT))

    def compute_features(self, frames_BTHWC: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        features_PF = self.vision.compute_features(frames_BTHWC[mask_BT])
        features_BTF = features_PF.new_zeros(*mask_BT.shape, features_PF.shape[1])
        features_BTF[mask_BT] = features_PF
        return features_BTF, mask_BT

    def tokens_from_features(self, features_BTF: Tensor, mask_BT: Tensor) -> Tokens:
        return self._attend_over_time(
            *self._frames_to_sequence(self.vision.tokens_from_features(features_BTF[mask_BT]), mask_BT)
        )

    def _frames_to_sequence(self, images: Tokens, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the tokens of P real frames into sequences (B, T x tokens of a frame, D), add sine positions of the
        frames, and return them with a mask of the real tokens.
        """
        if self.config.tokens == "pooled":
            x_PKD, mask_PK = images.pooled_BD.unsqueeze(1), mask_BT[mask_BT].unsqueeze(1)
        else:
            x_PKD, mask_PK = images.x_BTD, images.mask_BT
        x_PKD = self.adapter(x_PKD)
        tokens = x_PKD.shape[1]
        x_BTKD = x_PKD.new_zeros(*mask_BT.shape, tokens, self.config.width)
        x_BTKD[mask_BT] = x_PKD
        real_BTK = mask_BT.new_zeros(*mask_BT.shape, tokens)
        real_BTK[mask_BT] = mask_PK
        positions_TD = sine_positions(mask_BT.shape[1], self.config.width, x_PKD.device).to(x_PKD.dtype)
        return (x_BTKD + positions_TD[:, None]).flatten(1, 2), real_BTK.flatten(1)

    def _attend_over_time(self, x_BTD: Tensor, mask_BT: Tensor) -> Tokens:
        for layer in self.layers:
            x_BTD, _ = layer(x_BTD, mask_BT)
        x_BTD = self.projection(self.norm(x_BTD))
        return Tokens(x_BTD, mask_BT, masked_mean(x_BTD, mask_BT))

    def weights_to_grid(self, weights_NT: Tensor) -> Tensor | None:
        """Return None: the tokens belong to several images, and are no single grid."""
        return None

    def weights_over_time(self, weights_NT: Tensor) -> Tensor | None:
        """Sum the weights of the tokens of each frame."""
        return weights_NT.unflatten(1, (-1, self._tokens_of_frame())).sum(2)

    def _tokens_of_frame(self) -> int:
        return 1 if self.config.tokens == "pooled" else self._encode_blank_frame(self.vision).x_BTD.shape[1]

    def _encode_blank_frame(self, encode: Callable[[Tensor], Any]) -> Any:
        """Run a method of the vision encoder on a blank frame to learn the shapes of its outputs."""
        size = self.config.image_size
        pixels_BHWC = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=self.norm.weight.device)
        was_training = self.vision.training
        self.vision.eval()
        with torch.inference_mode():
            encoded = encode(pixels_BHWC)
        self.vision.train(was_training)
        return encoded

    def load_pretrained(self) -> None:
        self.vision.load_pretrained()

    def restore_buffers(self) -> None:
        self.vision.restore_buffers()

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        return self.vision.pretrained_parameters()

    def pretrained_layers(self) -> list[list[nn.Parameter]]:
        return self.vision.pretrained_layers()

    def frozen_tensor_names(self) -> Iterator[str]:
        return (f"vision.{name}" for name in self.vision.frozen_tensor_names())
