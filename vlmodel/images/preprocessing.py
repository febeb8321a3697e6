"""How images are prepared for an encoder: what its weights were trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

Interpolation = Literal["bilinear", "bicubic"]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


def as_pair(value: Any) -> Any:
    """(height, width) of one number, the side of a square, or of two; anything else as it is."""
    if isinstance(value, int):
        return (value, value)
    return tuple(value) if isinstance(value, list) else value


Pixels = Annotated[int, Field(ge=1)]
ImageSize = Annotated[tuple[Pixels, Pixels], BeforeValidator(as_pair)]
"""Height and width, in pixels or cells; one number stands for a square."""


@dataclass(frozen=True)
class Preprocessing:
    """What the weights of an encoder were trained with.

    Attributes:
        size: height and width of the images, in pixels.
        mean, std: of the red, green and blue channels, which are scaled to 0..1.
        interpolation: filter by which images are resized.
        resize: "crop" where the square in the center is cut out, "squash" where the whole image is distorted.
        crop: share of that square's side that is kept.
    """

    size: tuple[int, int]
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    resize: Literal["squash", "crop"] = "squash"
    crop: float = 1.0
