"""The error for bytes that cannot be decoded as an image."""

from __future__ import annotations

from vlmodel.media.base import MediumError


class ImageError(MediumError):
    """The bytes are not an image, or the image has too many pixels."""


def check_pixel_count(height: int, width: int, limit: int | None) -> None:
    """Raise ImageError if an image has more pixels than ``limit``.

    Raises:
        ImageError: "too_large".
    """
    if limit is not None and height * width > limit:
        raise image_too_large_error(f"{width} x {height} = {height * width} pixels", limit)


def image_too_large_error(size: str, limit: int | None) -> ImageError:
    """Create the error for an image with too many pixels; ``size`` describes its size in words."""
    allowed = f"; max_pixels allows {limit}" if limit is not None else ""
    return ImageError("too_large", f"image of too many pixels ({size}){allowed}")
