"""Checks image files: first the size, which the header states, then the pixels, by decoding them.

A block that a disk or a transfer has lost reads as zeros. PNG has checksums against that, but a JPEG decoder takes
zeros for pixels, so they are searched for here. Valid data may have long runs of zeros too (one colour in optimised
code), but these do not begin and end on the borders of blocks.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import ClassVar

import simplejpeg
from PIL import Image

from vlmodel.images.containers.base import ImageHeader
from vlmodel.images.errors import ImageError, check_pixel_count
from vlmodel.images.header import WITHOUT_END, find_image_end, is_complete_image, is_plain_jpeg, read_image_header
from vlmodel.images.pillow import OpenedImage, open_image
from vlmodel.media.base import CheckLimits, DisplayCopy, Fact, Medium, Verify, check_file_size

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow itself opens no larger image (twice its ``MAX_IMAGE_PIXELS``)."""

_SHOWN_SIDE, _LOSSLESS_SIDE = 512, 128
_BLOCK = bytes(512)
# How far a run of zeros may extend over a block's border: the byte beside a lost block may be zero as well.
_SLACK = 2
# Fewer zeros in the file's last, partial block are no sign of loss: valid files may end in a zero or two.
_LAST_BLOCK = 8
_UNCHECKED = ("jpeg", "webp", "tiff", "jpeg2000", "avif", "heif")
"""Formats without a checksum of their pixels, less BMP and GIF: of one colour, these may be zeros over whole blocks."""


class ImageMedium(Medium):
    """The medium of image files; of an animation or a file with several pages the first image. Sizes are those of the
    upright image.

    "decode" decodes all of it; a JPEG at an eighth of its size, which reads all of its entropy code at a fraction of
    the cost. "header" reads the header and checks that the picture's end is there. Borders of lost blocks are counted
    from the first byte, as the members of a tar begin on one.
    """

    name: ClassVar[str] = "image"
    extensions: ClassVar[tuple[str, ...]] = (
        "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jp2", "heic", "heif",
    )  # fmt: skip
    columns: ClassVar[Mapping[str, str]] = {"format": "string", "width": "int32", "height": "int32"}
    """``format`` is one of ``vlmodel.images.pillow.FORMATS``; the size is in pixels."""

    def display_copy(self, data: bytes) -> DisplayCopy:
        """Shrink the image to at most 512 pixels a side; small images, of which JPEG would blur the edges,
        become PNG.
        """
        with open_image(data) as opened:
            picture = opened.decode_upright()
        picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        if max(picture.size) <= _LOSSLESS_SIDE:
            picture.save(file, "PNG")
            return DisplayCopy(file.getvalue(), "image/png")
        picture.save(file, "JPEG", quality=90)
        return DisplayCopy(file.getvalue(), "image/jpeg")

    def check_file(self, data: bytes, limits: CheckLimits) -> dict[str, Fact]:
        check_file_size(data, limits, self.name)
        header = read_image_header(data)
        if header is not None and header.size is not None:
            check_pixel_count(*header.size, limits.max_pixels)
        if header is not None and (facts := _check_plain_jpeg(data, header, limits.verify)) is not None:
            return facts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_image(data, limits.max_pixels) as opened:
                return _check_opened_image(opened, data, limits)


def _check_plain_jpeg(data: bytes, header: ImageHeader, verify: Verify) -> dict[str, Fact] | None:
    """Check a plain JPEG without Pillow, which is slower; otherwise as ``_check_opened_image``. None if only Pillow can
    tell whether it is valid.
    """
    if header.size is None or not is_plain_jpeg(header):
        return None
    if verify == "decode":
        if not _decodes_cleanly(data):
            return None
    elif not is_complete_image(data, header):
        raise _truncated_image_error("jpeg", data)
    _check_no_zeroed_block(data, header)
    height, width = header.size[::-1] if header.orientation >= 5 else header.size
    return {"format": "jpeg", "width": width, "height": height}


def _check_opened_image(opened: OpenedImage, data: bytes, limits: CheckLimits) -> dict[str, Fact]:
    header, (height, width) = opened.header, opened.size
    check_pixel_count(height, width, limits.max_pixels)
    if limits.verify == "decode" or header.format in WITHOUT_END:
        if header.format == "jpeg":
            opened.image.draft("L", (1, 1))
        opened.image.load()
    elif not is_complete_image(data, header):
        raise _truncated_image_error(header.format, data)
    if header.format in _UNCHECKED:
        _check_no_zeroed_block(data, header)
    return {"format": header.format, "width": width, "height": height}


def _check_no_zeroed_block(data: bytes, header: ImageHeader) -> None:
    if (lost := _find_zeroed_block(data, header)) is not None:
        raise ImageError("undecodable", f"a block of zeros at byte {lost} of the image: lost data")


def _truncated_image_error(name: str, data: bytes) -> ImageError:
    return ImageError("truncated", f"{len(data)} bytes without the end of a {name} file")


def _decodes_cleanly(jpeg: bytes) -> bool:
    """Whether libjpeg decodes the file without a warning; it is faster than Pillow."""
    try:
        simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=1, min_width=1)
    except ValueError:
        return False
    return True


def _find_zeroed_block(data: bytes, header: ImageHeader) -> int | None:
    """Find a run of zeros that covers whole blocks of 512 bytes and no more, as after a disk fault; returns its offset,
    or None.

    Blocks are counted from the first byte, as the data of a tar's member begins on a block. A run within metadata, or
    behind the picture, does not count: no pixel is lost.
    """
    size = len(_BLOCK)
    start = data.find(_BLOCK)
    if start < 0 and not data.endswith(bytes(_LAST_BLOCK)):
        return None
    end_of_pixels = find_image_end(data, header) or len(data)

    def has_pixels(start: int, stop: int) -> bool:
        is_metadata = any(first <= start and stop <= end for first, end in header.metadata)
        return not is_metadata and start < end_of_pixels

    while start >= 0:
        end = start + size
        while data.startswith(_BLOCK, end):
            end += size
        while end < len(data) and data[end] == 0:
            end += 1
        on_borders = -start % size <= _SLACK and (end % size <= _SLACK or end == len(data))
        if on_borders and has_pixels(start, end):
            return start
        start = data.find(_BLOCK, end)
    zeros = len(data) - len(data.rstrip(b"\0"))
    last = len(data) % size
    if _LAST_BLOCK <= last <= zeros <= last + _SLACK and has_pixels(len(data) - last, len(data)):
        return len(data) - last
    return None


MEDIUM = ImageMedium()
