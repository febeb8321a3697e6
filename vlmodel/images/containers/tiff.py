"""Finds the end of a TIFF image from its directories of tags, which Pillow reads."""

from __future__ import annotations

import io
from itertools import chain

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vlmodel.images.containers.base import ImageHeader

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BIG = SIGNATURES[2:]
_STRIPS = ((273, 279), (324, 325))
"""Tags with the positions and the lengths of strips, and of tiles."""


def find_tiff_end(data: bytes, _: ImageHeader) -> int | None:
    """Find the position after the last strip or tile of the first page of a TIFF."""
    file = io.BytesIO(data)
    try:
        directory = ImageFileDirectory_v2(file.read(16 if data[:4] in _BIG else 8))
        file.seek(directory.next)
        directory.load(file)
        for starts, lengths in _STRIPS:
            if starts in directory:
                strips = zip(directory[starts], directory[lengths], strict=True)
                end = max(chain(map(sum, strips), (file.tell(),)))
                return end if end <= len(data) else None
    except Exception:  # whatever broken bytes cause in Pillow's reader
        pass
    return None
