"""Is this image sound? Its size is checked before anything is decoded, then all of it is decoded.

A block that a disk or a transfer has lost reads as zeros. PNG has checksums against that; a JPEG decoder takes zeros
for pixels, so they are looked for here. Sound data may hold long runs of zeros too (one colour in optimised code), but
these do not begin and end on the borders of blocks.
"""

from __future__ import annotations

import io
import warnings
from typing import Literal, NamedTuple

import simplejpeg
from PIL import Image, ImageOps

from pipelines.data.errors import Reason, SampleError
from vlmodel.images import FORMATS, plain_jpeg

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow itself opens no larger image (twice its ``MAX_IMAGE_PIXELS``)."""

Verify = Literal["decode", "header"]

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
# How a whole file of each format starts, and what must be near its end.
_MAGIC = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"BM": "bmp",
}
_END_MARK = {"jpeg": b"\xff\xd9", "png": b"IEND", "gif": b"\x3b"}
_BLOCK = bytes(512)
# How far a run of zeros may reach over a block's border: the byte beside a lost block may be zero as well.
_SLACK = 2
# The least that is lost of a last block that the file does not fill: sound files may end in a zero or two.
_LAST_BLOCK = 8
_UNCHECKED = ("jpeg", "webp")
_END_WINDOW = 64 << 10  # some cameras and programs append data of their own


class ImageFacts(NamedTuple):
    """``format`` is Pillow's name in lower case; the size is that of the upright image, in pixels."""

    format: str
    width: int
    height: int


def check_image(data: bytes, max_pixels: int, verify: Verify = "decode") -> ImageFacts:
    """What the image is, if it is sound.

    Args:
        data: the file; its borders of blocks are counted from its first byte.
        verify: "decode" decodes every bit. A JPEG is decoded at an eighth of its size, which reads all of its entropy
            code at a fraction of the cost. "header" reads the header and looks for the format's end mark.

    Raises:
        SampleError: EMPTY_MEMBER, IMAGE_TOO_LARGE, TRUNCATED_IMAGE or UNDECODABLE_IMAGE.
    """
    if not data:
        raise SampleError(Reason.EMPTY_MEMBER, "the image has no bytes")
    try:
        if (facts := _check_plain_jpeg(data, max_pixels, verify)) is not None:
            return facts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _check(image, data, max_pixels, verify)
    except (SampleError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise SampleError(Reason.IMAGE_TOO_LARGE, f"{error}; data.index.max_pixels allows {max_pixels}") from None
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to
        message = f"{len(data)} bytes, starting {data[:8].hex(' ')}: {error or type(error).__name__}"
        cut_off = isinstance(error, EOFError) or "truncated" in str(error).lower() or _is_cut(data)
        raise SampleError(Reason.TRUNCATED_IMAGE if cut_off else Reason.UNDECODABLE_IMAGE, message) from None


def _check_plain_jpeg(data: bytes, max_pixels: int, verify: Verify) -> ImageFacts | None:
    """As ``_check`` without Pillow, whose reading of a header takes longer than all else; None where it is to judge."""
    header = plain_jpeg(data)
    if header is None:
        return None
    _require_fewer(header.width, header.height, max_pixels)
    if verify == "decode":
        if not _decodes_cleanly(data):
            return None
    elif _is_cut(data):
        raise _cut("jpeg", data)
    _require_whole_blocks(data)
    return ImageFacts("jpeg", header.width, header.height)


def _check(image: Image.Image, data: bytes, max_pixels: int, verify: Verify) -> ImageFacts:
    width, height = image.size
    _require_fewer(width, height, max_pixels)
    # A JPEG with further pictures inside (MPO) is, for us, its first picture.
    name = "jpeg" if image.format == "MPO" else str(image.format).lower()
    orientation = image.getexif().get(_ORIENTATION, 1)
    if verify == "decode":
        if name != "jpeg" or orientation != 1 or not _decodes_cleanly(data):
            image.draft("L", (1, 1))
            image.load()
            if orientation != 1:
                ImageOps.exif_transpose(image)
    elif _is_cut(data):
        raise _cut(name, data)
    if name in _UNCHECKED:
        _require_whole_blocks(data)
    return ImageFacts(name, height, width) if orientation in _SIDEWAYS else ImageFacts(name, width, height)


def _require_fewer(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        found = f"{width} x {height} = {width * height} pixels"
        raise SampleError(Reason.IMAGE_TOO_LARGE, f"{found}; data.index.max_pixels allows {max_pixels}")


def _require_whole_blocks(data: bytes) -> None:
    if (lost := _lost_block(data)) is not None:
        raise SampleError(Reason.UNDECODABLE_IMAGE, f"a block of zeros at byte {lost} of the image: lost data")


def _cut(name: str, data: bytes) -> SampleError:
    return SampleError(Reason.TRUNCATED_IMAGE, f"{len(data)} bytes without the end of a {name} file")


def _decodes_cleanly(jpeg: bytes) -> bool:
    """Whether libjpeg has no remark on it, in less time than Pillow takes. What it remarks on, Pillow is to judge."""
    try:
        simplejpeg.decode_jpeg(jpeg, "GRAY", min_height=1, min_width=1)
    except ValueError:
        return False
    return True


def _lost_block(data: bytes) -> int | None:
    """Where a run of zeros covers whole blocks and no more; the data of a tar's member begins on a block's border."""
    size = len(_BLOCK)
    found = data.find(_BLOCK)
    while found >= 0:
        end = found + size
        while data.startswith(_BLOCK, end):
            end += size
        while end < len(data) and data[end] == 0:
            end += 1
        if -found % size <= _SLACK and (end % size <= _SLACK or end == len(data)):
            return found
        found = data.find(_BLOCK, end)
    zeros = len(data) - len(data.rstrip(b"\0"))
    last = len(data) % size
    return len(data) - last if _LAST_BLOCK <= last <= zeros <= last + _SLACK else None


def _is_cut(data: bytes) -> bool:
    """Whether the bytes start like an image of a known format and do not end like one."""
    kind = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
    if kind == "webp":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if kind == "bmp":
        return len(data) < int.from_bytes(data[2:6], "little")
    return kind is not None and data.rfind(_END_MARK[kind], -_END_WINDOW) < 0
