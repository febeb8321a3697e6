"""Parses JPEG files: segments up to the first scan, then entropy-coded data (ITU-T T.81, annex B)."""

from __future__ import annotations

import re

from vlmodel.images.containers.base import ImageHeader, read_big_endian
from vlmodel.images.containers.exif import read_image_orientation

_MAX_SEGMENTS = 4096
"""A valid file has a few hundred segments before its scan at most."""
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EOI, _SOS, _COM, _APP0, _APP1, _ADOBE, _APP15 = 0xD9, 0xDA, 0xFE, 0xE0, 0xE1, 0xEE, 0xEF
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES = frozenset((0xC4, 0xCC, 0xDB, 0xDD))
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
_END_OF_SCAN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""A marker that ends the entropy-coded data of a scan."""


def read_jpeg_header(data: bytes) -> ImageHeader:
    """Parse the header of a JPEG from the segments before its first scan. Bytes between segments are skipped, as
    libjpeg does.
    """
    at, size, components, frame = 2, None, 0, 0
    metadata: list[tuple[int, int]] = []
    exif: list[bytes] = []
    xmp = b""
    last = len(data) - 4
    for _ in range(_MAX_SEGMENTS):
        if at > last:
            break
        if data[at] != 0xFF:
            at = data.find(b"\xff", at)
            if not 0 <= at <= last:
                break
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _SOS:
            # libjpeg buffers the whole image if its scans hold some components each, as progressive ones do.
            buffered = frame & 3 == 2 or data[at + 4 : at + 5] != bytes([components])
            turn = read_image_orientation(b"".join(exif), xmp)
            return ImageHeader("jpeg", turn, tuple(metadata), at, size, frame, components, buffered)
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        length = data[at + 2] << 8 | data[at + 3]
        start, end = at + 4, at + 2 + length
        if length < 2 or end > len(data):
            break
        if marker in _TABLES:
            at = end
            continue
        if marker == _COM or (_APP0 < marker <= _APP15 and marker != _ADOBE):
            metadata.append((at, end))
            if marker == _APP1:
                if data.startswith(b"Exif\0\0", start):
                    # One block may be split over several segments.
                    exif.append(data[start + 6 * bool(exif) : end])
                elif data.startswith(_XMP, start):
                    xmp = data[start + len(_XMP) : end]
        elif marker in _FRAMES and length >= 8:
            size = (read_big_endian(data, at + 5, 2), read_big_endian(data, at + 7, 2))
            components, frame = data[at + 9] if data[at + 4] == 8 else 0, marker
        at = end
    return ImageHeader("jpeg", read_image_orientation(b"".join(exif), xmp), tuple(metadata), size=size)


def find_jpeg_end(data: bytes, header: ImageHeader) -> int | None:
    """Find the position after a JPEG's end marker, which entropy-coded data cannot contain; tables between scans are
    skipped.
    """
    at = header.scan
    if at < 0:
        return None
    while at + 4 <= len(data):
        at += 2 + read_big_endian(data, at + 2, 2)  # the segment at this position
        marker = _END_OF_SCAN.search(data, at)
        if marker is None:
            return None
        at = marker.start()
        if data[at + 1] == _EOI:
            return at + 2
    return None
