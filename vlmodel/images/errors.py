"""Errors of bytes that cannot be decoded as an image."""

from __future__ import annotations

from vlmodel.media.base import MediumError


class ImageError(MediumError):
    """Bytes that are no image, or one of too many pixels."""


def check_pixel_count(height: int, width: int, limit: int | None) -> None:
    """Refuse an image of more pixels than ``limit``.

    Raises:
        ImageError: "too_large".
    """
    if limit is not None and height * width > limit:
        raise image_too_large_error(f"{width} x {height} = {height * width} pixels", limit)


def image_too_large_error(size: str, limit: int | None) -> ImageError:
    """The error for an image with too many pixels; ``size`` is its size in words."""
    allowed = f"; max_pixels allows {limit}" if limit is not None else ""
    return ImageError("too_large", f"image of too many pixels ({size}){allowed}")
