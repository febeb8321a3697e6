"""Opens image files by Pillow, with readers of known formats only; the size is checked before anything is decoded."""

from __future__ import annotations

import functools
import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile

from vlmodel.images.containers.base import ImageHeader
from vlmodel.images.containers.exif import ORIENTATION
from vlmodel.images.errors import ImageError, check_pixel_count, image_too_large_error
from vlmodel.images.header import is_complete_image, read_image_header, remove_image_metadata
from vlmodel.images.resize import rotate_upright

_READERS = {
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "gif": "GIF",
    "tiff": "TIFF",
    "avif": "AVIF",
    "jpeg2000": "JPEG2000",
    "heif": "HEIF",
}
FORMATS = tuple(_READERS)
"""Formats that are decoded; no other reader of Pillow's gets any data. Of a TIFF with several pages and of an animation
the first image is decoded. "heif" (HEIC) needs the package pillow-heif."""

WEB_FORMATS = ("jpeg", "png", "webp", "bmp", "gif")
"""Formats whose headers bound the memory of decoding, so that a service can accept them from anyone."""

EXTENSIONS = {name: name for name in FORMATS} | {"jpeg": "jpg", "tiff": "tif", "jpeg2000": "jp2", "heif": "heic"}
"""The usual extension of a file of each format."""

DRAFT_FACTOR = 2
"""A JPEG decoded at a half, quarter or eighth of its size costs less. It stays at least so many times the target, so
that the result hardly differs from that of the full size (as in Pillow's ``thumbnail``)."""

_WHITE = (255, 255, 255, 255)
_TILE_SIDES = (322, 323)
"""TIFF's tags."""
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "I", "I;16", "I;16B", "I;16L")
"""Pillow's modes that become RGB. 32-bit greys ("F", and "I" in a TIFF) do not define black and white."""
_BIT_DEPTH = 24
"""Position in a PNG of the byte with the bits of a sample."""


class OpenedImage(NamedTuple):
    """An image file that Pillow has opened without its metadata and not decoded yet.

    Attributes:
        image: as it is stored.
        header: what the file says about itself.
    """

    image: ImageFile.ImageFile
    header: ImageHeader

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image, in pixels."""
        height, width = self.image.height, self.image.width
        return (width, height) if self._exif_orientation >= 5 else (height, width)

    @property
    def _exif_orientation(self) -> int:
        if self.header.format != "avif":
            return self.header.orientation
        value = self.image.getexif().get(ORIENTATION, 1)  # Pillow's name for the container's own property
        return value if value in range(1, 9) else 1

    def decode_at_reduced_size(self, size: tuple[int, int]) -> None:
        """Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, if that is enough for an image of this height and
        width, as it is stored.
        """
        if self.header.format == "jpeg":
            height, width = size
            self.image.draft(None, (DRAFT_FACTOR * width, DRAFT_FACTOR * height))

    def decode_upright(self) -> Image.Image:
        """Decode the image to RGB: upright, with transparent pixels on white."""
        rgb = _image_to_rgb(self.image)
        if self._exif_orientation == 1:
            return rgb
        return Image.fromarray(np.ascontiguousarray(rotate_upright(np.asarray(rgb), self._exif_orientation)))


@contextmanager
def open_image(data: bytes, max_pixels: int | None = None, formats: Collection[str] = FORMATS) -> Iterator[OpenedImage]:
    """Open an image file by Pillow's reader of its format, without decoding it.

    Args:
        max_pixels: larger images are refused; None leaves that to the caller, below what Pillow itself refuses.
        formats: the accepted ones of ``FORMATS``.

    Raises:
        ImageError: the bytes are cut off, are no image of these formats, or are one of too many pixels. What Pillow
            raises while the image is open becomes one, too.
    """
    header = read_image_header(data)
    try:
        if header is None or header.format not in formats:
            raise ValueError(f"no image of a format that is read here ({', '.join(formats)})")
        if header.size is not None:
            check_pixel_count(*header.size, max_pixels)
        if header.format == "heif":
            _register_heif_reader()
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # callers decode in threads or processes of their own
        with Image.open(io.BytesIO(remove_image_metadata(data, header)), formats=[_READERS[header.format]]) as image:
            check_pixel_count(image.height, image.width, max_pixels)
            _check_image_readable(image, max_pixels)
            _scale_transparent_colour(image, data)
            yield OpenedImage(image, header)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise image_too_large_error(str(error), max_pixels) from None
    except Exception as error:  # decoders raise anything on broken bytes
        kind: Literal["truncated", "undecodable"] = (
            "truncated" if _is_cut_off_file(error, data, header) else "undecodable"
        )
        first = data[:8].hex(" ") or "no bytes"
        raise ImageError(
            kind, f"{kind} image ({len(data)} bytes, starting {first}): {error or type(error).__name__}"
        ) from error


def image_extension(data: bytes) -> str | None:
    """Return the usual extension of an image file of one of ``FORMATS``, by its first bytes; None for other files."""
    header = read_image_header(data)
    return None if header is None else EXTENSIONS[header.format]


def _image_to_rgb(image: Image.Image) -> Image.Image:
    transparent = "transparency" in image.info
    if image.mode == "RGB" and not transparent:
        image.load()
        return image
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit greys at 255 instead of scaling them.
        grey = np.asarray(image).astype(np.uint32).clip(0, 65535)
        small = (grey // 257).astype(np.uint8)
        if transparent:
            small[grey == image.info["transparency"]] = 255
        return Image.fromarray(small).convert("RGB")
    if transparent or image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def _check_image_readable(image: Image.Image, max_pixels: int | None) -> None:
    """Raise ImageError for colour modes that cannot become RGB, and for tiles that are larger than an image may be."""
    if image.mode not in _MODES or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(f"pixels of mode {image.mode!r} do not become RGB; store 8 or 16 bits of grey, RGB or CMYK")
    tags: Any = getattr(image, "tag_v2", {})
    height, width = (tags.get(tag, 0) for tag in _TILE_SIDES)
    check_pixel_count(height, width, max_pixels or Image.MAX_IMAGE_PIXELS)


def _scale_transparent_colour(image: Image.Image, data: bytes) -> None:
    """Scale the transparent colour of a PNG from the file's bit depth to the 8 bits of decoded pixels."""
    transparent = image.info.get("transparency")
    if image.format != "PNG" or transparent is None or image.mode not in ("L", "RGB"):
        return
    depth = data[_BIT_DEPTH]
    if image.mode == "L":
        image.info["transparency"] = transparent * 255 // ((1 << depth) - 1)
    elif depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


@functools.cache
def _register_heif_reader() -> None:
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(
            "undecodable", "a HEIC image, which only the package pillow-heif reads: install it wherever images are read"
        ) from None
    pillow_heif.register_heif_opener()
    pillow_heif.options.DECODE_THREADS = 1


def _is_cut_off_file(error: Exception, data: bytes, header: ImageHeader | None) -> bool:
    if header is not None and not is_complete_image(data, header):
        return True
    return isinstance(error, EOFError) or "truncated" in str(error).lower()
