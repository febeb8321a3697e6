"""Decoding on the CPU: plain JPEGs by libjpeg-turbo (simplejpeg), everything else by Pillow."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg

from vlmodel.images.containers.base import ImageHeader
from vlmodel.images.errors import check_pixel_count
from vlmodel.images.header import is_plain_jpeg, read_header
from vlmodel.images.pillow import DRAFT_FACTOR, FORMATS, open_image
from vlmodel.images.resize import Square, resize_to_square

if TYPE_CHECKING:
    from numpy.typing import NDArray


def decode(
    data: bytes,
    square: Square,
    max_pixels: int,
    out: NDArray[np.uint8] | None = None,
    formats: Collection[str] = FORMATS,
) -> NDArray[np.uint8]:
    """An image as (side, side, 3) uint8 RGB: upright, on white where it is transparent.

    Args:
        out: memory for the pixels, such as a row of a batch; new if not given.
        formats: the accepted ones of ``FORMATS``.

    Raises:
        ImageError: as ``open_image``.
    """
    header = read_header(data)
    if header is not None and (pixels_HWC := _decode_jpeg(data, header, square, max_pixels)) is not None:
        return resize_to_square(pixels_HWC, square, out, header.orientation)
    with open_image(data, max_pixels, formats) as opened:
        opened.decode_at_reduced_size(square.least_side)
        pixels_HWC = np.asarray(opened.decode_upright())
    return resize_to_square(pixels_HWC, square, out)


def decoded_pixels(data: bytes, square: Square, formats: Collection[str] = FORMATS) -> int:
    """How many pixels ``decode`` holds at once, by the header alone: a large JPEG is decoded at a part of its size.

    Raises:
        ImageError: as ``open_image``.
    """
    header = read_header(data)
    if header is None or header.size is None or header.format not in formats:
        with open_image(data, formats=formats) as opened:
            return opened.image.height * opened.image.width
    height, width = header.size
    least = DRAFT_FACTOR * square.least_side
    scale = 1 if header.buffered else min(height // least, width // least, 8)
    scale = 1 << max(0, scale.bit_length() - 1)
    return -(-height // scale) * -(-width // scale)


def _decode_jpeg(data: bytes, header: ImageHeader, square: Square, max_pixels: int) -> NDArray[np.uint8] | None:
    """Pillow's pixels, by the same library in a third of the time; None for files that are left to Pillow."""
    if header.size is None or not is_plain_jpeg(header):
        return None
    check_pixel_count(*header.size, max_pixels)
    if min(header.size) >= 2 * DRAFT_FACTOR * square.least_side:  # Pillow decodes it at a part of its size
        return None
    try:
        pixels_HWC: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    except ValueError:  # also for defects that Pillow tolerates
        return None
    return pixels_HWC
