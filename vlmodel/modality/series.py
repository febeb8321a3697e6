"""Encodes series of numbers over time, such as those of sensors, by convolutions and a Transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from vlmodel.config import ConfigSection
from vlmodel.media.base import CheckLimits, MediumError
from vlmodel.media.series import decode_series
from vlmodel.modality._settings import SequenceSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlmodel.modality._series import SeriesEncoder

_MAX_VALUES = CheckLimits().max_values


class Augment(ConfigSection):
    """Settings of random augmentation in training, drawn anew in each epoch; none by default (Um et al. 2017,
    arXiv:1706.00527).
    """

    jitter: float = Field(0.0, ge=0, le=10)
    """Standard deviation of noise on each number, in multiples of its channel's ``std``."""
    scaling: float = Field(0.0, ge=0, lt=1)
    """Each channel is multiplied by a factor that differs from 1 by at most this."""
    time_shift: int = Field(0, ge=0)
    """A series begins at most so many time steps later, without its first ones, or is preceded by so many copies of its
    first one."""
    min_length: float = Field(1.0, gt=0, le=1)
    """Smallest share of a series that is kept, from anywhere in it."""

    @property
    def is_active(self) -> bool:
        return bool(self.jitter or self.scaling or self.time_shift or self.min_length < 1)


class Config(SequenceSettings):
    """Settings of a series encoder: a convolution over the time steps of each token, then Transformer layers."""

    medium: ClassVar[str] = "series"
    non_backbone_settings: ClassVar[frozenset[str]] = SequenceSettings.non_backbone_settings | {"augment"}

    kind: Literal["series"] = "series"
    channels: int = Field(ge=1)
    """Numbers of a time step, which every series has."""
    columns: list[str] = []
    """Names of the columns of CSV files that are read, in this order, as ["gyroscope_x", "gyroscope_y"]; [] for all
    columns of numbers."""
    max_steps: int = Field(4096, ge=1)
    """Longer series are cut to their first so many time steps."""
    stride: int = Field(4, ge=1)
    """Time steps of a token."""
    mean: tuple[float, ...] = Field((), strict=False)
    """Mean of each channel over the data, which is subtracted; () for none."""
    std: tuple[float, ...] = Field((), strict=False)
    """Standard deviation of each channel, by which it is divided; () for one."""
    augment: Augment = Augment()
    """Random changes of the series that it is trained with."""

    @model_validator(mode="after")
    def _check_settings(self) -> Config:
        if self.columns and len(self.columns) != self.channels:
            raise ValueError(f"columns has {len(self.columns)} names, and channels={self.channels}; make them equal")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and (len(values) != self.channels or not np.isfinite(values).all()):
                raise ValueError(
                    f"{name} has {len(values)} numbers; give channels={self.channels} finite ones, or none"
                )
        if not all(std > 0 for std in self.std):
            raise ValueError(f"std={self.std} must be positive")
        return self

    def decode(self, data: bytes) -> dict[str, NDArray[Any]]:
        """Decode a series to ``x_TC`` float32, of at most ``max_steps`` time steps."""
        x_TC = decode_series(data, _MAX_VALUES, self.columns)
        if x_TC.shape[1] != self.channels:
            raise MediumError(
                "wrong_shape", f"a series of {x_TC.shape[1]} channels; the model takes channels={self.channels}"
            )
        return {"x_TC": x_TC[: self.max_steps]}

    def has_augmentation(self) -> bool:
        return self.augment.is_active

    def decode_augmented(self, data: bytes, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        augment, x_TC = self.augment, self.decode(data)["x_TC"]
        if augment.min_length < 1:
            length = max(1, round(len(x_TC) * rng.uniform(augment.min_length, 1)))
            first = int(rng.integers(0, len(x_TC) - length + 1))
            x_TC = x_TC[first : first + length]
        if augment.time_shift:
            shift = int(rng.integers(-augment.time_shift, augment.time_shift + 1))
            x_TC = np.pad(x_TC, ((max(0, shift), 0), (0, 0)), mode="edge")[min(max(0, -shift), len(x_TC) - 1) :]
        if augment.scaling:
            x_TC = x_TC * rng.uniform(1 - augment.scaling, 1 + augment.scaling, self.channels).astype(np.float32)
        if augment.jitter:
            noise_TC = rng.normal(0, augment.jitter, x_TC.shape) * np.array(self.std or 1.0)
            x_TC = x_TC + noise_TC.astype(np.float32)
        return {"x_TC": x_TC[: self.max_steps]}

    def collate(self, decoded: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[np.generic]]:
        """Stack series to ``x_BTC`` float32, padded with zeros to the longest, and ``mask_BT``, True for real time
        steps.
        """
        lengths_B = np.array([len(series["x_TC"]) for series in decoded], np.int64)
        mask_BT = np.arange(lengths_B.max(initial=1)) < lengths_B[:, None]
        x_BTC = np.zeros((*mask_BT.shape, self.channels), np.float32)
        for series, x_TC in zip(decoded, x_BTC, strict=True):
            x_TC[: len(series["x_TC"])] = series["x_TC"]
        return {"x_BTC": x_BTC, "mask_BT": mask_BT}

    def build(self) -> SeriesEncoder:
        from vlmodel.modality._series import SeriesEncoder

        return SeriesEncoder(self)
