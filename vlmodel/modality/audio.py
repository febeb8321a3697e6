"""Sounds: log-mel spectrograms, convolutions and a Transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from vlmodel.media.audio import decode_audio, to_mono
from vlmodel.media.base import CheckLimits
from vlmodel.modality._settings import SequenceSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlmodel.modality._audio import AudioEncoder


class Config(SequenceSettings):
    """The mean of a sound's channels as a log-mel spectrogram, two-dimensional convolutions, Transformer layers."""

    medium: ClassVar[str] = "audio"

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

    @model_validator(mode="after")
    def _bands_are_within_the_rate(self) -> Config:
        highest = self.rate / 2
        high = highest if self.high is None else self.high
        if not self.low < high <= highest:
            raise ValueError(
                f"low={self.low:g} Hz and high={high:g} Hz must be below rate/2 = {highest:g} Hz, in order"
            )
        if self.samples(self.hop) < 1 or self.samples(self.window) < 2:
            raise ValueError(f"window={self.window} and hop={self.hop} seconds have no sample at rate={self.rate}")
        return self

    def samples(self, seconds: float) -> int:
        """Samples of so many seconds."""
        return round(seconds * self.rate)

    def decode(self, data: bytes) -> dict[str, NDArray[Any]]:
        """``x_T`` float32: the mean of the channels at ``rate``, of at most ``max_seconds``."""
        sound = decode_audio(data, CheckLimits(), self.max_seconds)
        return {"x_T": to_mono(sound, self.rate)[: math.ceil(self.max_seconds * self.rate)]}

    def collate(self, decoded: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[np.generic]]:
        """``x_BT`` float32, padded with zeros to the longest, and ``length_B`` int64, in samples."""
        length_B = np.array([len(sound["x_T"]) for sound in decoded], np.int64)
        x_BT = np.zeros((len(decoded), length_B.max(initial=1)), np.float32)
        for sound, x_T in zip(decoded, x_BT, strict=True):
            x_T[: len(sound["x_T"])] = sound["x_T"]
        return {"x_BT": x_BT, "length_B": length_B}

    def build(self) -> AudioEncoder:
        from vlmodel.modality._audio import AudioEncoder

        return AudioEncoder(self)
