"""Images: every format of ``vlmodel.images``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import ClassVar

from PIL import Image

from vlmodel.images.errors import ImageError
from vlmodel.images.header import WITHOUT_END, is_complete
from vlmodel.images.pillow import open_image
from vlmodel.media.base import CheckLimits, Fact, Medium, require_size


class ImageMedium(Medium):
    """One image. Of an animation and of several pages the first one counts; the size is that of the upright image."""

    name: ClassVar[str] = "image"
    extensions: ClassVar[tuple[str, ...]] = (
        "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jp2", "heic", "heif",
    )  # fmt: skip
    columns: ClassVar[Mapping[str, str]] = {"format": "string", "width": "int32", "height": "int32"}

    def check(self, data: bytes, limits: CheckLimits) -> dict[str, Fact]:
        require_size(data, limits, self.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_image(data, limits.max_pixels) as opened:
                header, (height, width) = opened.header, opened.size
                if limits.verify == "decode" or header.format in WITHOUT_END:
                    opened.image.load()
                elif not is_complete(data, header):
                    raise ImageError("truncated", f"{len(data)} bytes without the end of a {header.format} file")
        return {"format": header.format, "width": width, "height": height}


MEDIUM = ImageMedium()
