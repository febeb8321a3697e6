"""The module of the encoder ``audio``."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmodel.modality._sequence import SequenceEncoder

if TYPE_CHECKING:
    from vlmodel.modality.audio import Config

_LEAST_POWER = 1e-10


class LogMelSpectrogram(nn.Module):
    """Computes log-mel spectrograms (B, windows, bands) of waveforms (B, T).

    A window begins every ``hop`` samples, and is real if its first sample is. Samples after a sound's end are set to
    zero, so that the result does not depend on padding.
    """

    window_W: Tensor
    filters_FM: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.hop, self.scaling = config.seconds_to_samples(config.hop), config.scaling
        width = max(config.seconds_to_samples(config.window), self.hop)
        # Twice the window, for at least one frequency in each of the low bands.
        self.frequencies = 1 << math.ceil(math.log2(2 * width))
        high = config.rate / 2 if config.high is None else config.high
        filters = mel_filter_bank(
            1 + self.frequencies // 2, config.mels, config.low, high, config.rate, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("window_W", torch.hann_window(width))
        self.register_buffer("filters_FM", torch.from_numpy(filters).float())

    def forward(self, x_BT: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the spectrograms, and a mask of which windows are real."""
        # In single precision: powers range over ten orders of magnitude.
        with torch.autocast(x_BT.device.type, enabled=False):
            x_BT = x_BT.float() * (torch.arange(x_BT.shape[1], device=x_BT.device) < length_B[:, None])
            windows = -(-x_BT.shape[1] // self.hop)
            missing = (windows - 1) * self.hop + len(self.window_W) - x_BT.shape[1]
            x_BTW = F.pad(x_BT, (0, missing)).unfold(1, len(self.window_W), self.hop) * self.window_W.float()
            x_BTM = (self._power_spectrum(x_BTW) @ self.filters_FM.float()).clamp_min(_LEAST_POWER).log()
            mask_BT = torch.arange(windows, device=x_BT.device) * self.hop < length_B[:, None]
            return self._scale_spectrogram(x_BTM, mask_BT), mask_BT

    def _power_spectrum(self, x_BTW: Tensor) -> Tensor:
        """Compute the power spectrum of each window, (B, T, F)."""
        if not len(x_BTW):  # no sample of the batch has a sound, and MKL transforms no empty batch
            return x_BTW.new_zeros(*x_BTW.shape[:2], len(self.filters_FM))
        return torch.view_as_real(torch.fft.rfft(x_BTW, n=self.frequencies)).square().sum(-1)

    def _scale_spectrogram(self, x_BTM: Tensor, mask_BT: Tensor) -> Tensor:
        mask_BT1 = mask_BT.unsqueeze(-1).to(x_BTM.dtype)
        if self.scaling != "none":
            over = (1, 2) if self.scaling == "clip" else (1,)
            bands = x_BTM.shape[2] if self.scaling == "clip" else 1
            count_B11 = mask_BT1.sum(1, keepdim=True).clamp_min(1) * bands
            x_BTM = x_BTM - (x_BTM * mask_BT1).sum(over, keepdim=True) / count_B11
            variance = (x_BTM.square() * mask_BT1).sum(over, keepdim=True) / count_B11
            x_BTM = x_BTM * (variance + 1e-5).rsqrt()
        return x_BTM * mask_BT1


class AudioEncoder(SequenceEncoder):
    """Encodes sounds by a log-mel spectrogram, three 3 x 3 convolutions and Transformer layers.

    Each convolution halves the number of bands and, until ``time_stride`` windows make one token, the time. Each place
    is normalised over its channels alone, so that neither padding nor the rest of the batch changes a result.
    """

    stem_modules: ClassVar[tuple[str, ...]] = ("convolutions", "norms", "flat")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.mel = LogMelSpectrogram(config)
        self.strides = strides = [2 if config.time_stride > 1 << place else 1 for place in range(3)]
        channels = [1, config.channels, config.channels, config.channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(*pair, 3, stride=(stride, 2), padding=1)
            for pair, stride in zip(pairwise(channels), strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.channels) for _ in strides)
        bands = -(-config.mels // 8)
        self.flat = nn.Linear(bands * config.channels, config.width)
        self.build_layers()

    def stem(  # type: ignore[override]
        self, x_BT: Tensor, length_B: Tensor, bands_BM: Tensor | None = None, spans_BK2: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x_BTM, mask_BT = self.mel(x_BT, length_B)
        if bands_BM is not None and spans_BK2 is not None:
            x_BTM = mask_with_mean(x_BTM, mask_BT, bands_BM, spans_BK2, self.mel.hop)
        x_BCTM = x_BTM.unsqueeze(1).to(self.flat.weight.dtype)
        for convolution, norm, stride in zip(self.convolutions, self.norms, self.strides, strict=True):
            x_BTMC = norm(convolution(x_BCTM).permute(0, 2, 3, 1))
            mask_BT = mask_BT[:, ::stride]
            x_BCTM = (F.gelu(x_BTMC) * mask_BT[:, :, None, None]).permute(0, 3, 1, 2)
        return self.flat(x_BCTM.permute(0, 2, 3, 1).flatten(2)), mask_BT


def mask_with_mean(x_BTM: Tensor, mask_BT: Tensor, bands_BM: Tensor, spans_BK2: Tensor, hop: int) -> Tensor:
    """Replace some bands and time spans of spectrograms by each spectrogram's mean (SpecAugment).

    Args:
        mask_BT: the real windows.
        bands_BM: True for the bands.
        spans_BK2: first sample, and the one behind the last, of each span; a window is where its first sample is.
    """
    count_B11 = (mask_BT.sum(1) * x_BTM.shape[2]).clamp_min(1).view(-1, 1, 1)
    mean_B11 = (x_BTM * mask_BT.unsqueeze(-1)).sum((1, 2), keepdim=True) / count_B11
    starts_T = torch.arange(x_BTM.shape[1], device=x_BTM.device) * hop
    in_span_BKT = (starts_T >= spans_BK2[..., :1]) & (starts_T < spans_BK2[..., 1:])
    masked_BTM = in_span_BKT.any(1).unsqueeze(-1) | bands_BM.unsqueeze(1)
    return torch.where(masked_BTM & mask_BT.unsqueeze(-1), mean_B11, x_BTM)
