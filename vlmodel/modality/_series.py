"""The module of the encoder ``series``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmodel.modality._sequence import SequenceEncoder

if TYPE_CHECKING:
    from vlmodel.modality.series import Config


class SeriesEncoder(SequenceEncoder):
    """Encodes series of numbers with one token for every ``stride`` time steps: two convolutions, then Transformer
    layers.

    The stem is that of speech encoders (Radford et al. 2022, arXiv:2212.04356, section 2.2), its second convolution
    without overlap, as the patches of PatchTST (Nie et al. 2023, arXiv:2211.14730). Time steps after a series' end are
    zeros in every layer of the stem, so that padding changes nothing.
    """

    stem_modules: ClassVar[tuple[str, ...]] = ("steps", "patches")

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        channels, width = config.channels, config.width
        self.stride = config.stride
        self.register_buffer("mean_C", torch.tensor(config.mean or (0.0,) * channels))
        self.register_buffer("std_C", torch.tensor(config.std or (1.0,) * channels))
        self.steps = nn.Conv1d(channels, width, 3, padding=1)
        self.patches = nn.Conv1d(width, width, config.stride, stride=config.stride)
        self.build_layers()

    def stem(self, x_BTC: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        mask_B1T = mask_BT.unsqueeze(1)
        x_BCT = ((x_BTC - self.mean_C) / self.std_C).transpose(1, 2) * mask_B1T
        x_BDT = F.gelu(self.steps(x_BCT)) * mask_B1T
        missing = -x_BDT.shape[2] % self.stride
        x_BTD = F.gelu(self.patches(F.pad(x_BDT, (0, missing)))).transpose(1, 2)
        # A token is real if its first time step is.
        return x_BTD, mask_BT[:, :: self.stride]
