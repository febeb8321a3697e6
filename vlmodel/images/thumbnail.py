"""Makes small copies of images for pages that show many."""

from __future__ import annotations

import io

from PIL import Image

from vlmodel.images.pillow import open_image
from vlmodel.media.base import DisplayCopy


def make_thumbnail(image: bytes, side: int) -> DisplayCopy:
    """Make a JPEG without metadata of at most ``side`` x ``side`` pixels.

    Raises:
        ImageError: the bytes cannot be decoded.
    """
    with open_image(image) as opened:
        opened.decode_at_reduced_size((side, side))
        picture = opened.decode_upright()
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return DisplayCopy(file.getvalue(), "image/jpeg")
