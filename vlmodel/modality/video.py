"""Encodes videos by a vision encoder for each of some frames, and a Transformer over their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from vlmodel.config import ConfigSection, part_field
from vlmodel.images.resize import ImageResizing, Resize, resize_image
from vlmodel.media.base import CheckLimits, MediumError
from vlmodel.media.video import decode_video
from vlmodel.modality._settings import TransformerLayerSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlmodel.modality._video import VideoEncoder


class Augment(ConfigSection):
    """Settings of random augmentation in training, drawn anew in each epoch; none by default."""

    frame_jitter: float = Field(0.0, ge=0, le=1)
    """Share of each of the video's parts, about its middle, from which its frame is taken; 1 for all of it (the sparse
    sampling of temporal segment networks, Wang et al. 2016, arXiv:1608.00859)."""


class Config(TransformerLayerSettings):
    """Settings of a video encoder: frames at equal distances are encoded as images, and Transformer layers attend over
    all of their tokens.

    The backbone is that of ``vision``: if it is frozen (``vision.frozen``), its features of all frames are cached, and
    the layers over time are trained.
    """

    medium: ClassVar[str] = "video"
    non_backbone_settings: ClassVar[frozenset[str]] = frozenset(
        {"width", "depth", "heads", "expansion", "dropout", "projection", "tokens", "augment"}
    )

    kind: Literal["video"] = "video"
    frames: int = Field(8, ge=1, le=1024)
    """Frames that are read: the middle one of each of so many equally long parts of a video."""
    image_size: int = Field(112, ge=1)
    """Side of the square to which each frame is brought, in pixels."""
    resize: Resize = "squash"
    """"squash" distorts the whole frame to a square, "crop" cuts out the square in its center, "pad" adds grey
    bars."""
    tokens: Literal["pooled", "all"] = "pooled"
    """One token a frame, the pooled vector of its image; or all tokens of each image."""
    vision: part_field("vlmodel.vision", "cnn") = Field({}, validate_default=True)  # type: ignore[valid-type]
    """Encoder of a frame."""
    augment: Augment = Augment()
    """Random changes of the videos that it is trained with."""

    @model_validator(mode="after")
    def _check_vision_takes_frames(self) -> Config:
        if not self.vision.reads_images:
            raise ValueError(f"vision.kind={self.vision.kind!r} encodes no images; name an encoder of frames")
        self.vision.check_image_size((self.image_size, self.image_size))
        return self

    def is_frozen(self) -> bool:
        return bool(self.vision.is_frozen())

    def decode(self, data: bytes) -> dict[str, NDArray[Any]]:
        """Decode a video to ``frames_THWC`` uint8, RGB: at most ``frames`` frames, in order."""
        return self._decode_frames(data, 0.5)

    def has_augmentation(self) -> bool:
        return self.augment.frame_jitter > 0

    def decode_augmented(self, data: bytes, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        jitter = self.augment.frame_jitter / 2
        return self._decode_frames(data, rng.uniform(0.5 - jitter, 0.5 + jitter, self.frames).tolist())

    def _decode_frames(self, data: bytes, shift: float | Sequence[float]) -> dict[str, NDArray[Any]]:
        square = ImageResizing((self.image_size, self.image_size), self.resize)
        frames_THWC = np.empty((self.frames, self.image_size, self.image_size, 3), np.uint8)
        count = 0
        for _, rgb_HWC in decode_video(
            data, CheckLimits(), lambda timeline: timeline.evenly_spaced_frames(self.frames, shift)
        ):
            resize_image(rgb_HWC, square, frames_THWC[count])
            count += 1
        if not count:
            raise MediumError("empty", "a video without a frame")
        return {"frames_THWC": frames_THWC[:count]}

    def collate(self, decoded: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[np.generic]]:
        """Stack videos to ``frames_BTHWC`` uint8, padded with black frames to the longest, and ``mask_BT``, True for
        real frames.
        """
        length_B = np.array([len(video["frames_THWC"]) for video in decoded], np.int64)
        mask_BT = np.arange(length_B.max(initial=1)) < length_B[:, None]
        frames_BTHWC = np.zeros((*mask_BT.shape, self.image_size, self.image_size, 3), np.uint8)
        for video, frames_THWC in zip(decoded, frames_BTHWC, strict=True):
            frames_THWC[: len(video["frames_THWC"])] = video["frames_THWC"]
        return {"frames_BTHWC": frames_BTHWC, "mask_BT": mask_BT}

    def resolve_settings(self) -> Config:
        return self.model_copy(update={"vision": self.vision.resolve_settings((self.image_size, self.image_size))})

    def build(self) -> VideoEncoder:
        from vlmodel.modality._video import VideoEncoder

        return VideoEncoder(self)
