"""The header that every container parser returns, and functions that read integers from bytes."""

from __future__ import annotations

from typing import NamedTuple


class ImageHeader(NamedTuple):
    """What the header of an image file tells: format, size, orientation and where the metadata are.

    Attributes:
        format: "jpeg", "png", "webp", "gif", "bmp", "tiff", "jpeg2000", "avif" or "heif".
        orientation: EXIF's or else XMP's, from 1 (upright) to 8. 1 for formats that Pillow turns itself (TIFF) or that
            store their orientation outside metadata (AVIF, HEIC).
        metadata: byte ranges (start, end) without pixels, in order.
        scan: where the marker of a JPEG's first scan is; -1 where there is none, and for other formats.
        size: (height, width) as stored, of JPEG, PNG, WebP and JPEG 2000; None for others, or if it is missing.
        frame: marker of a JPEG's frame, such as 0xC0; 0 for other formats.
        components: of a JPEG of 8 bits: 1 for grey, 3 for colour, 4 for CMYK; 0 for everything else.
        buffered: whether a decoder needs memory for the whole image even if it returns a smaller one.
    """

    format: str
    orientation: int = 1
    metadata: tuple[tuple[int, int], ...] = ()
    scan: int = -1
    size: tuple[int, int] | None = None
    frame: int = 0
    components: int = 0
    buffered: bool = True


def read_little_endian(data: bytes, at: int, size: int = 4) -> int:
    """Read an unsigned little-endian integer."""
    return int.from_bytes(data[at : at + size], "little")


def read_big_endian(data: bytes, at: int, size: int = 4) -> int:
    """Read an unsigned big-endian integer."""
    return int.from_bytes(data[at : at + size], "big")
