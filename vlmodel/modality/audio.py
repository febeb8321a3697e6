"""Encodes sounds by a log-mel spectrogram, convolutions and a Transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from vlmodel.config import ConfigSection
from vlmodel.media.audio import decode_audio, to_mono
from vlmodel.media.base import CheckLimits
from vlmodel.modality._settings import SequenceSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlmodel.modality._audio import AudioEncoder


class Augment(ConfigSection):
    """Settings of random augmentation in training, drawn anew in each epoch; none by default."""

    time_shift: float = Field(0.0, ge=0, le=60)
    """At most so many seconds of silence are put before a sound, or cut from its beginning."""
    speed: float = Field(0.0, ge=0, lt=1)
    """A sound is played by at most this share faster or slower, its pitch with it (Ko et al. 2015)."""
    noise: float = Field(0.0, ge=0, le=10)
    """Standard deviation of white noise, at most, in multiples of the sound's own."""
    frequency_masks: int = Field(0, ge=0, le=16)
    """SpecAugment (Park et al. 2019, arXiv:1904.08779): so many groups of neighbouring bands become the mean."""
    frequency_width: int = Field(8, ge=1)
    """Bands of a group, at most."""
    time_masks: int = Field(0, ge=0, le=16)
    """SpecAugment: so many spans of time become the mean."""
    time_width: float = Field(0.1, gt=0)
    """Seconds of a span, at most."""

    @property
    def is_active(self) -> bool:
        return bool(self.time_shift or self.speed or self.noise or self.frequency_masks or self.time_masks)


class Config(SequenceSettings):
    """Settings of a sound encoder: log-mel spectrogram of the mean of the channels, two-dimensional convolutions,
    Transformer layers.
    """

    medium: ClassVar[str] = "audio"
    non_backbone_settings: ClassVar[frozenset[str]] = SequenceSettings.non_backbone_settings | {"augment"}

    kind: Literal["audio"] = "audio"
    rate: int = Field(16_000, ge=1000, le=192_000)
    """Samples a second to which all sounds are resampled; half of it is the highest frequency."""
    max_seconds: float = Field(30.0, gt=0, le=3600)
    """Longer sounds are cut to their first so many seconds."""
    window: float = Field(0.025, gt=0, le=1)
    """Seconds of a window of the spectrogram (Hann)."""
    hop: float = Field(0.01, gt=0, le=1)
    """Seconds from one window to the next."""
    mels: int = Field(64, ge=8, le=512)
    """Bands of the mel scale."""
    low: float = Field(20.0, ge=0)
    """Lowest frequency of the bands, in Hz."""
    high: float | None = Field(None, gt=0)
    """Highest frequency of the bands, in Hz; null for half the rate."""
    scaling: Literal["clip", "band", "none"] = "clip"
    """"clip" scales the spectrogram of each sound to mean 0 and standard deviation 1, so that loudness does not matter;
    "band" scales each band of it so, which takes away what microphone and room do to all of a sound; "none" nothing."""
    channels: int = Field(32, ge=1)
    """Channels of the convolutions."""
    time_stride: Literal[1, 2, 4, 8] = 4
    """Windows of a token."""
    augment: Augment = Augment()
    """Random changes of the sounds that it is trained with."""

    @model_validator(mode="after")
    def _check_mel_bands(self) -> Config:
        highest = self.rate / 2
        high = highest if self.high is None else self.high
        if not self.low < high <= highest:
            raise ValueError(
                f"low={self.low:g} Hz and high={high:g} Hz must be below rate/2 = {highest:g} Hz, in order"
            )
        if self.seconds_to_samples(self.hop) < 1 or self.seconds_to_samples(self.window) < 2:
            raise ValueError(f"window={self.window} and hop={self.hop} seconds have no sample at rate={self.rate}")
        return self

    def seconds_to_samples(self, seconds: float) -> int:
        """Convert seconds to a number of samples at ``rate``."""
        return round(seconds * self.rate)

    def decode(self, data: bytes) -> dict[str, NDArray[Any]]:
        """Decode a sound to ``x_T`` float32: the mean of the channels at ``rate``, at most ``max_seconds`` long."""
        sound = decode_audio(data, CheckLimits(), self.max_seconds)
        return {"x_T": to_mono(sound, self.rate)[: math.ceil(self.max_seconds * self.rate)]}

    def has_augmentation(self) -> bool:
        return self.augment.is_active

    def decode_augmented(self, data: bytes, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Decode a sound with random changes; adds ``bands_M``, which spectrogram bands are masked, and ``spans_K2``
        int64, the first sample and the one after the last of each masked span.
        """
        augment = self.augment
        x_T = augment_waveform(self.decode(data)["x_T"], augment, self.rate, rng)
        x_T = x_T[: math.ceil(self.max_seconds * self.rate)]
        bands_M = np.zeros(self.mels, np.bool_)
        for _ in range(augment.frequency_masks):
            width = int(rng.integers(0, min(augment.frequency_width, self.mels) + 1))
            first = int(rng.integers(0, self.mels - width + 1))
            bands_M[first : first + width] = True
        spans_K2 = np.zeros((augment.time_masks, 2), np.int64)
        for span in spans_K2:
            # No more than half of a short sound (SpecAugment bounds the share, too).
            width = int(rng.integers(0, min(self.seconds_to_samples(augment.time_width), len(x_T) // 2) + 1))
            first = int(rng.integers(0, len(x_T) - width + 1))
            span[:] = first, first + width
        return {"x_T": x_T, "bands_M": bands_M, "spans_K2": spans_K2}

    def collate(self, decoded: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[np.generic]]:
        """Stack sounds to ``x_BT`` float32, padded with zeros to the longest, and ``length_B`` int64, in samples; for
        augmented sounds also ``bands_BM`` bool and ``spans_BK2`` int64, which are masked.
        """
        length_B = np.array([len(sound["x_T"]) for sound in decoded], np.int64)
        x_BT = np.zeros((len(decoded), length_B.max(initial=1)), np.float32)
        for sound, x_T in zip(decoded, x_BT, strict=True):
            x_T[: len(sound["x_T"])] = sound["x_T"]
        arrays: dict[str, NDArray[np.generic]] = {"x_BT": x_BT, "length_B": length_B}
        if decoded and "bands_M" in decoded[0]:
            arrays["bands_BM"] = np.stack([sound["bands_M"] for sound in decoded])
            arrays["spans_BK2"] = np.stack([sound["spans_K2"] for sound in decoded])
        return arrays

    def build(self) -> AudioEncoder:
        from vlmodel.modality._audio import AudioEncoder

        return AudioEncoder(self)


def augment_waveform(
    x_T: NDArray[np.float32], augment: Augment, rate: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Change the speed of a waveform (at least one sample), shift it in time and add noise."""
    if augment.speed:
        length = max(1, round(len(x_T) / (1 + rng.uniform(-augment.speed, augment.speed))))
        places_T = np.linspace(0, len(x_T) - 1, length)
        x_T = np.interp(places_T, np.arange(len(x_T)), x_T).astype(np.float32)
    if augment.time_shift:
        shift = round(rng.uniform(-augment.time_shift, augment.time_shift) * rate)
        x_T = np.pad(x_T, (shift, 0)) if shift >= 0 else x_T[min(-shift, len(x_T) - 1) :]
    if augment.noise:
        deviation = float(x_T.std()) * rng.uniform(0, augment.noise)
        x_T = x_T + rng.normal(0, deviation, len(x_T)).astype(np.float32)
    return x_T
