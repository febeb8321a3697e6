"""Decodes images on the CPU: plain JPEGs by libjpeg-turbo (simplejpeg), everything else by Pillow."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg

from vlmodel.images.containers.base import ImageHeader
from vlmodel.images.errors import check_pixel_count
from vlmodel.images.header import is_plain_jpeg, read_image_header
from vlmodel.images.pillow import DRAFT_FACTOR, FORMATS, open_image
from vlmodel.images.resize import ImageResizing, resize_image

if TYPE_CHECKING:
    from numpy.typing import NDArray


def decode_image(
    data: bytes,
    resizing: ImageResizing,
    max_pixels: int,
    out: NDArray[np.uint8] | None = None,
    formats: Collection[str] = FORMATS,
) -> NDArray[np.uint8]:
    """Decode an image to (height, width, 3) uint8 RGB, of the given size: upright, with transparent pixels on white.

    Args:
        out: memory for the pixels, such as a row of a batch; new if not given.
        formats: the accepted ones of ``FORMATS``.

    Raises:
        ImageError: as ``open_image``.
    """
    header = read_image_header(data)
    if header is not None and (pixels_HWC := _decode_jpeg(data, header, resizing, max_pixels)) is not None:
        return resize_image(pixels_HWC, resizing, out, header.orientation)
    with open_image(data, max_pixels, formats) as opened:
        opened.decode_at_reduced_size(resizing.min_source_size(opened.header.orientation))
        pixels_HWC = np.asarray(opened.decode_upright())
    return resize_image(pixels_HWC, resizing, out)


def count_decoded_pixels(data: bytes, resizing: ImageResizing, formats: Collection[str] = FORMATS) -> int:
    """Calculate from the header how many pixels ``decode_image`` holds in memory at once; a large JPEG is decoded at
    reduced size.

    Raises:
        ImageError: as ``open_image``.
    """
    header = read_image_header(data)
    if header is None or header.size is None or header.format not in formats:
        with open_image(data, formats=formats) as opened:
            return opened.image.height * opened.image.width
    height, width = header.size
    least_height, least_width = (DRAFT_FACTOR * least for least in resizing.min_source_size(header.orientation))
    scale = 1 if header.buffered else min(height // least_height, width // least_width, 8)
    scale = 1 << max(0, scale.bit_length() - 1)
    return -(-height // scale) * -(-width // scale)


def _decode_jpeg(
    data: bytes, header: ImageHeader, resizing: ImageResizing, max_pixels: int
) -> NDArray[np.uint8] | None:
    """Decode a plain JPEG by simplejpeg: the same pixels as Pillow's in a third of the time; None for files that only
    Pillow decodes.
    """
    if header.size is None or not is_plain_jpeg(header):
        return None
    check_pixel_count(*header.size, max_pixels)
    least = resizing.min_source_size(header.orientation)
    if all(has >= 2 * DRAFT_FACTOR * needed for has, needed in zip(header.size, least, strict=True)):
        return None  # Pillow decodes it at a part of its size
    try:
        pixels_HWC: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    except ValueError:  # also for defects that Pillow tolerates
        return None
    return pixels_HWC
