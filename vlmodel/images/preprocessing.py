"""The preprocessing of images that matches the training of an encoder's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vlmodel.images.resize import Interpolation, Resize

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


def as_height_and_width(value: Any) -> Any:
    """Convert a setting to (height, width): one number means a square, a list of two is kept; other values stay
    unchanged.
    """
    if isinstance(value, int):
        return (value, value)
    return tuple(value) if isinstance(value, list) else value


Pixels = Annotated[int, Field(ge=1)]
ImageSize = Annotated[tuple[Pixels, Pixels], BeforeValidator(as_height_and_width)]
"""Height and width, in pixels or cells; one number stands for a square."""


def as_side_or_size(value: Any) -> Any:
    """Convert a list or pair of two equal numbers to one of them, and a list of others to a pair."""
    if not isinstance(value, (list, tuple)):
        return value
    return value[0] if len(value) == 2 and value[0] == value[1] else tuple(value)


SideOrSize = Annotated[Annotated[int, Field(ge=0)] | tuple[Pixels, Pixels], BeforeValidator(as_side_or_size)]
"""Side of a square in pixels, 0 where something else decides it; or height and width that differ."""


def describe_size(size: tuple[int, int]) -> str:
    """Write a size as it is set: 224, or [96, 384]."""
    height, width = size
    return str(height) if height == width else f"[{height}, {width}]"


@dataclass(frozen=True)
class ImagePreprocessing:
    """The image preprocessing with which the weights of an encoder were trained.

    Attributes:
        size: height and width of the images, in pixels.
        mean, std: of the red, green and blue channels, which are scaled to 0..1.
        interpolation, resize, crop: as of ``resize.ImageResizing``.
        stated: True if the files of the weights say so, False if it is only the usual default.
    """

    size: tuple[int, int]
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    resize: Resize = "squash"
    crop: float = 1.0
    stated: bool = False
