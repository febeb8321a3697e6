"""Parses WebP files, which are RIFF chunks."""

from __future__ import annotations

from vlmodel.images.containers.base import ImageHeader, read_little_endian
from vlmodel.images.containers.exif import read_image_orientation

_PIXEL_CHUNKS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_HAS_EXIF, _HAS_XMP, _HAS_ICC = 0x08, 0x04, 0x20


def read_webp_header(data: bytes) -> ImageHeader:
    """Parse the header of a WebP from all of its chunks, as metadata may follow the pixels."""
    metadata: list[tuple[int, int]] = []
    exif, xmp = b"", b""
    file_end = min(8 + read_little_endian(data, 4), len(data))
    flags = data[20] if data[12:16] == b"VP8X" and len(data) > 20 else 0
    at = 12
    while at + 8 <= file_end:
        kind, length = data[at : at + 4], read_little_endian(data, at + 4)
        end = at + 8 + length + length % 2
        if end > file_end + length % 2:
            break
        end = min(end, file_end)
        if kind not in _PIXEL_CHUNKS:
            metadata.append((at, end))
            if kind == b"EXIF" and flags & _HAS_EXIF:
                exif = exif or data[at + 8 : at + 8 + length]
            elif kind == b"XMP " and flags & _HAS_XMP:
                xmp = xmp or data[at + 8 : at + 8 + length]
        at = end
    if at == file_end < len(data):
        metadata.append((file_end, len(data)))
    return ImageHeader("webp", read_image_orientation(exif, xmp), tuple(metadata), size=_read_webp_size(data))


def repair_webp_header(data: bytes) -> bytes:
    """Correct the length and the flags in the header of a WebP from which metadata was removed."""
    data = b"RIFF" + (len(data) - 8).to_bytes(4, "little") + data[8:]
    if data[12:16] != b"VP8X":
        return data
    return data[:20] + bytes([data[20] & ~(_HAS_EXIF | _HAS_XMP | _HAS_ICC)]) + data[21:]


def find_webp_end(data: bytes, _: ImageHeader) -> int | None:
    """Find the position after the RIFF chunk that is the whole WebP image."""
    end = 8 + read_little_endian(data, 4)
    return end if end <= len(data) else None


def _read_webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            return 1 + read_little_endian(data, 27, 3), 1 + read_little_endian(data, 24, 3)
        case b"VP8L":
            sides = read_little_endian(data, 21)
            return 1 + (sides >> 14 & 0x3FFF), 1 + (sides & 0x3FFF)
        case b"VP8 ":
            return read_little_endian(data, 28, 2) & 0x3FFF, read_little_endian(data, 26, 2) & 0x3FFF
    return None
