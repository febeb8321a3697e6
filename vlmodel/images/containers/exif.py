"""Reads an image's orientation from its EXIF or XMP metadata."""

from __future__ import annotations

import re
import struct

ORIENTATION = 0x0112
"""EXIF's tag of the orientation."""

_INTEGERS = {1: "B", 3: "H", 4: "I"}
"""TIFF's integer types and struct's letters for them."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def read_image_orientation(exif: bytes, xmp: bytes) -> int:
    """Read the orientation from EXIF, or else from XMP; 1 (upright) if neither has a valid value."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    value = _read_exif_orientation(exif)
    if value is None and (match := _XMP_ORIENTATION.search(xmp)):
        value = int(match[1])
    return value if value is not None and 1 <= value <= 8 else 1


def _read_exif_orientation(exif: bytes) -> int | None:
    """Read the orientation tag from the first EXIF directory. Pillow's own parser warns about broken EXIF, which is
    common.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(f"{order}HHI", exif, at)
            if tag == ORIENTATION and kind in _INTEGERS and values:
                value: int = struct.unpack_from(order + _INTEGERS[kind], exif, at + 8)[0]
                return value
    except struct.error:
        pass
    return None
