"""Is this image sound? Its size is checked before anything is decoded, then all of it is decoded.

A block that a disk or a transfer has lost reads as zeros. PNG has checksums against that; a JPEG decoder takes zeros
for pixels, so they are looked for here. Sound data may hold long runs of zeros too (one colour in optimised code), but
these do not begin and end on the borders of blocks.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import simplejpeg
from PIL import Image

from pipelines.data.tars.errors import Reason, SampleError
from vlmodel.images.containers.base import Header
from vlmodel.images.errors import ImageError, check_pixel_count
from vlmodel.images.header import WITHOUT_END, image_end, is_complete, is_plain_jpeg, read_header
from vlmodel.images.pillow import OpenedImage, open_image

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow itself opens no larger image (twice its ``MAX_IMAGE_PIXELS``)."""

Verify = Literal["decode", "header"]

_BLOCK = bytes(512)
# How far a run of zeros may reach over a block's border: the byte beside a lost block may be zero as well.
_SLACK = 2
# The least that is lost of a last block that the file does not fill: sound files may end in a zero or two.
_LAST_BLOCK = 8
_UNCHECKED = ("jpeg", "webp", "tiff", "jpeg2000", "avif", "heif")
"""Formats whose pixels have no checksum. A BMP and a GIF of one colour may well be zeros from block to block."""
_REASONS = {
    "truncated": Reason.TRUNCATED_IMAGE,
    "undecodable": Reason.UNDECODABLE_IMAGE,
    "too_large": Reason.IMAGE_TOO_LARGE,
}


class ImageFacts(NamedTuple):
    """``format`` is one of ``vlmodel.images.pillow.FORMATS``; the size is that of the upright image, in pixels."""

    format: str
    width: int
    height: int


def check_image(data: bytes, max_pixels: int, verify: Verify = "decode") -> ImageFacts:
    """What the image is, if it is sound.

    Args:
        data: the file; its borders of blocks are counted from its first byte.
        verify: "decode" decodes every bit. A JPEG is decoded at an eighth of its size, which reads all of its entropy
            code at a fraction of the cost. "header" reads the header and looks whether the picture's end is there.

    Raises:
        SampleError: EMPTY_MEMBER, IMAGE_TOO_LARGE, TRUNCATED_IMAGE or UNDECODABLE_IMAGE.
    """
    if not data:
        raise SampleError(Reason.EMPTY_MEMBER, "the image has no bytes")
    header = read_header(data)
    try:
        if header is not None and header.size is not None:
            check_pixel_count(*header.size, max_pixels)
        if header is not None and (facts := _check_plain_jpeg(data, header, max_pixels, verify)) is not None:
            return facts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_image(data, max_pixels) as opened:
                return _check(opened, data, max_pixels, verify)
    except ImageError as error:
        setting = " (data.index.max_pixels)" if error.kind == "too_large" else ""
        raise SampleError(_REASONS[error.kind], f"{error}{setting}") from None


def _check_plain_jpeg(data: bytes, header: Header, max_pixels: int, verify: Verify) -> ImageFacts | None:
    """As ``_check`` without Pillow, whose reading of a header takes longer than all else; None where it is to judge."""
    if header.size is None or not is_plain_jpeg(header):
        return None
    if verify == "decode":
        if not _decodes_cleanly(data):
            return None
    elif not is_complete(data, header):
        raise _cut("jpeg", data)
    _require_whole_blocks(data, header)
    height, width = header.size[::-1] if header.orientation >= 5 else header.size
    return ImageFacts("jpeg", width, height)


def _check(opened: OpenedImage, data: bytes, max_pixels: int, verify: Verify) -> ImageFacts:
    header, (height, width) = opened.header, opened.size
    check_pixel_count(height, width, max_pixels)
    if verify == "decode" or header.format in WITHOUT_END:
        if header.format == "jpeg":
            opened.image.draft("L", (1, 1))
        opened.image.load()
    elif not is_complete(data, header):
        raise _cut(header.format, data)
    if header.format in _UNCHECKED:
        _require_whole_blocks(data, header)
    return ImageFacts(header.format, width, height)


def _require_whole_blocks(data: bytes, header: Header) -> None:
    if (lost := _lost_block(data, header)) is not None:
        raise ImageError("undecodable", f"a block of zeros at byte {lost} of the image: lost data")


def _cut(name: str, data: bytes) -> ImageError:
    return ImageError("truncated", f"{len(data)} bytes without the end of a {name} file")


def _decodes_cleanly(jpeg: bytes) -> bool:
    """Whether libjpeg has no remark on it, in less time than Pillow takes. What it remarks on, Pillow is to judge."""
    try:
        simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=1, min_width=1)
    except ValueError:
        return False
    return True


def _lost_block(data: bytes, header: Header) -> int | None:
    """Where a run of zeros covers whole blocks and no more; the data of a tar's member begins on a block's border.

    One within metadata, or behind the picture, has cost no pixel: the segments around it are where they should be.
    """
    size = len(_BLOCK)
    found = data.find(_BLOCK)
    if found < 0 and not data.endswith(bytes(_LAST_BLOCK)):
        return None
    end_of_pixels = image_end(data, header) or len(data)

    def lacks_pixels(first: int, behind: int) -> bool:
        beside = any(start <= first and behind <= end for start, end in header.metadata)
        return not beside and first < end_of_pixels

    while found >= 0:
        end = found + size
        while data.startswith(_BLOCK, end):
            end += size
        while end < len(data) and data[end] == 0:
            end += 1
        on_borders = -found % size <= _SLACK and (end % size <= _SLACK or end == len(data))
        if on_borders and lacks_pixels(found, end):
            return found
        found = data.find(_BLOCK, end)
    zeros = len(data) - len(data.rstrip(b"\0"))
    last = len(data) % size
    if _LAST_BLOCK <= last <= zeros <= last + _SLACK and lacks_pixels(len(data) - last, len(data)):
        return len(data) - last
    return None
