"""From an image file to a square of pixels: upright, RGB, on white where it is transparent.

torch is imported where something is resized: processes that only look at headers stay small.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import AvifImagePlugin, Image, ImageFile

from vlmodel.image_header import Header, is_complete, read_header, without_metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
"""Image formats that are decoded; Pillow's other readers are never given any data. Of a TIFF with several pages and of
what moves the first picture is taken. "heif" (HEIC) needs the package pillow-heif."""

WEB_FORMATS = ("jpeg", "png", "webp", "bmp", "gif")
"""Formats whose headers bound what decoding takes, so that they can be taken of anyone."""

_EXTENSIONS = {"jpeg": "jpg", "tiff": "tif", "jpeg2000": "jp2", "heif": "heic"}

Resize = Literal["squash", "crop"]

_KEPT = 2
"""A JPEG can be decoded at a half, quarter or eighth of its size for less. So many times the target is always left, so
that the result is hardly another than that of the full size (Pillow's own thumbnail() does the same)."""

_WHITE = (255, 255, 255, 255)
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_ORIENTATION = 0x0112
_TILE_SIDES = (322, 323)
"""TIFF's tags."""
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "I", "I;16", "I;16B", "I;16L")
"""Pillow's modes that become RGB. 32-bit greys ("F", and "I" in a TIFF) do not say which values are black and white."""
_DEPTH_OFFSET = 24
"""Of the byte of a PNG that says how many bits a sample has."""
_BACK = {6: 8, 8: 6}
"""Orientations that undo others; all that are not here undo themselves."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """Bytes that give no image.

    Attributes:
        kind: "truncated", "undecodable" or "too_large".
    """

    def __init__(self, kind: Literal["truncated", "undecodable", "too_large"], message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[1])


class OpenedImage(NamedTuple):
    """An image file that Pillow has opened, without its metadata; its pixels are yet to be decoded.

    Attributes:
        image: as it is stored.
        header: what the file says of itself.
    """

    image: ImageFile.ImageFile
    header: Header

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright image, in pixels."""
        height, width = self.image.height, self.image.width
        return (width, height) if self._turn in _SIDEWAYS else (height, width)

    @property
    def _turn(self) -> Image.Transpose | None:
        if self.header.format == "avif":  # by its container's own properties
            return _TURNS.get(self.image.getexif().get(_ORIENTATION, 1))
        return _TURNS.get(self.header.orientation)

    def draft(self, side: int) -> None:
        """Have a JPEG decoded at a part of its size, where that is enough for a square of this side."""
        if self.header.format == "jpeg":
            self.image.draft(None, (_KEPT * side, _KEPT * side))

    def upright(self) -> Image.Image:
        """The image as RGB: turned as the file says, on white where it is transparent."""
        turn = self._turn
        rgb = _rgb(self.image)
        return rgb if turn is None else rgb.transpose(turn)


def decode(
    data: bytes,
    size: int,
    resize: Resize,
    max_pixels: int,
    out: NDArray[np.uint8] | None = None,
    formats: Collection[str] = FORMATS,
) -> NDArray[np.uint8]:
    """An image as (size, size, 3) uint8 RGB.

    Resized by torch's antialiased bilinear filter, which is Pillow's but for rounding and several times as fast.

    Args:
        resize: "squash" keeps the whole picture and bends its shape; "crop" keeps its shape and the middle square.
        out: where to put the pixels, such as a place in a batch; new memory if not given.
        formats: those that are taken, of ``FORMATS``.

    Raises:
        ImageError: the bytes are cut off, are no image of these formats, or are one of too many pixels.
    """
    header = read_header(data)
    if header is not None and (pixels_HWC := _plain_jpeg(data, header, size, max_pixels)) is not None:
        return _resized(pixels_HWC, size, resize, out, header.orientation)
    with open_image(data, max_pixels, formats) as opened:
        opened.draft(size)
        pixels_HWC = np.asarray(opened.upright())
    return _resized(pixels_HWC, size, resize, out)


@contextmanager
def open_image(data: bytes, max_pixels: int | None = None, formats: Collection[str] = FORMATS) -> Iterator[OpenedImage]:
    """An image file, opened by Pillow's reader of its format.

    Args:
        max_pixels: larger images are refused; None leaves it to the caller, below what Pillow itself refuses.
        formats: those that are taken, of ``FORMATS``.

    Raises:
        ImageError: as ``decode`` does. What Pillow raises while the image is open becomes one as well.
    """
    header = read_header(data)
    try:
        if header is None or header.format not in formats:
            raise ValueError(f"no image of a format that is read here ({', '.join(formats)})")
        if header.size is not None:
            check_pixel_count(*header.size, max_pixels)
        if header.format == "heif":
            _register_heif()
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # what decodes has threads or processes of its own
        with Image.open(io.BytesIO(without_metadata(data, header)), formats=[_READERS[header.format]]) as image:
            check_pixel_count(image.height, image.width, max_pixels)
            _require_readable(image, max_pixels)
            _scale_transparency(image, data)
            yield OpenedImage(image, header)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), max_pixels) from None
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        kind: Literal["truncated", "undecodable"] = "truncated" if _is_cut_off(error, data, header) else "undecodable"
        first = data[:8].hex(" ") or "no bytes"
        raise ImageError(
            kind, f"{kind} image ({len(data)} bytes, starting {first}): {error or type(error).__name__}"
        ) from error


def extension_of(data: bytes) -> str | None:
    """The usual extension of a file of one of ``FORMATS``, by its first bytes; None if it is none."""
    header = read_header(data)
    return None if header is None else _EXTENSIONS.get(header.format, header.format)


def decoded_pixels(data: bytes, size: int, formats: Collection[str] = FORMATS) -> int:
    """How many pixels ``decode`` will hold at once, by the header alone: a large JPEG is decoded at a part of its size.

    Raises:
        ImageError: as ``decode`` does.
    """
    header = read_header(data)
    if header is None or header.size is None or header.format not in formats:
        with open_image(data, formats=formats) as opened:
            return opened.image.height * opened.image.width
    height, width = header.size
    scale = 1 if header.buffered else min(height // (_KEPT * size), width // (_KEPT * size), 8)
    scale = 1 << max(0, scale.bit_length() - 1)
    return -(-height // scale) * -(-width // scale)


def is_plain_jpeg(header: Header | None) -> bool:
    """Whether it is a JPEG of 8 bits, grey or in colours, whose scan is there."""
    return header is not None and header.scan >= 0 and header.size is not None and header.components in (1, 3)


def check_pixel_count(height: int, width: int, limit: int | None) -> None:
    """Refuse an image of more pixels than ``limit``.

    Raises:
        ImageError: too_large.
    """
    if limit is not None and height * width > limit:
        raise _too_large(f"{width} x {height} = {height * width} pixels", limit)


def _plain_jpeg(data: bytes, header: Header, size: int, max_pixels: int) -> NDArray[np.uint8] | None:
    """The pixels that Pillow would give, by the same library in a third of the steps; None where Pillow is to judge."""
    if header.size is None or not is_plain_jpeg(header):
        return None
    check_pixel_count(*header.size, max_pixels)
    if min(header.size) >= 2 * _KEPT * size:
        return None  # the large ones Pillow decodes smaller
    try:
        pixels_HWC: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    except ValueError:  # also of what a reader can overlook
        return None
    return pixels_HWC


def _turned(pixels_HWC: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The upright image: a view."""
    if orientation in (3, 4, 6, 7):
        pixels_HWC = pixels_HWC[::-1]
    if orientation in (2, 3, 7, 8):
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC.transpose(1, 0, 2) if orientation >= 5 else pixels_HWC


def center_square(height: int, width: int) -> tuple[int, int, int]:
    """Its first row, first column and side."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def _resized(
    pixels_HWC: NDArray[np.uint8],
    size: int,
    resize: Resize,
    out_HWC: NDArray[np.uint8] | None,
    orientation: int = 1,
) -> NDArray[np.uint8]:
    if orientation != 1:
        # Turned when it is small: pixels of which neighbours are far apart in memory are slow to read.
        back = _BACK.get(orientation, orientation)
        if resize == "crop":
            upright_HWC = _turned(pixels_HWC, orientation)
            top, left, side = center_square(*upright_HWC.shape[:2])
            pixels_HWC = _turned(upright_HWC[top : top + side, left : left + side], back)
        small_HWC = _turned(_resized(pixels_HWC, size, "squash", None), orientation)
        if out_HWC is None:
            return np.ascontiguousarray(small_HWC)
        out_HWC[:] = small_HWC
        return out_HWC
    height, width = pixels_HWC.shape[:2]
    if resize == "crop" and height != width:
        top, left, side = center_square(height, width)
        pixels_HWC = pixels_HWC[top : top + side, left : left + side]
    if out_HWC is None:
        out_HWC = np.empty((size, size, 3), np.uint8)
    if pixels_HWC.shape[:2] == (size, size):
        out_HWC[:] = pixels_HWC
        return out_HWC
    import torch

    # interpolate()'s own operator, as only so the result needs no copy to where it belongs, and is not laid out plane
    # by plane. From BHWC, as only so torch sees that the channels lie side by side, for which its filter is fast.
    pixels_BHWC = torch.from_numpy(np.require(pixels_HWC[None], requirements=["C", "W"]))
    out_BHWC = torch.from_numpy(out_HWC[None])
    torch.ops.aten._upsample_bilinear2d_aa.out(
        pixels_BHWC.permute(0, 3, 1, 2), [size, size], False, out=out_BHWC.permute(0, 3, 1, 2)
    )
    return out_HWC


def _rgb(image: Image.Image) -> Image.Image:
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


def _require_readable(image: Image.Image, max_pixels: int | None) -> None:
    """Refuse colours that do not become RGB, and tiles that are larger than an image may be."""
    if image.mode not in _MODES or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError(f"pixels of mode {image.mode!r} do not become RGB; store 8 or 16 bits of grey, RGB or CMYK")
    tags: Any = getattr(image, "tag_v2", {})
    height, width = (tags.get(tag, 0) for tag in _TILE_SIDES)
    check_pixel_count(height, width, max_pixels or Image.MAX_IMAGE_PIXELS)


def _scale_transparency(image: Image.Image, data: bytes) -> None:
    """Say the transparent colour of a PNG in values of its decoded pixels; the file has it in its own bits."""
    transparent = image.info.get("transparency")
    if image.format != "PNG" or transparent is None or image.mode not in ("L", "RGB"):
        return
    depth = data[_DEPTH_OFFSET]
    if image.mode == "L":
        image.info["transparency"] = transparent * 255 // ((1 << depth) - 1)
    elif depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


@functools.cache
def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(
            "undecodable", "a HEIC image, which only the package pillow-heif reads: install it wherever images are read"
        ) from None
    pillow_heif.register_heif_opener()
    pillow_heif.options.DECODE_THREADS = 1


def _is_cut_off(error: Exception, data: bytes, header: Header | None) -> bool:
    if header is not None and not is_complete(data, header):
        return True
    return isinstance(error, EOFError) or "truncated" in str(error).lower()


def _too_large(found: str, limit: int | None) -> ImageError:
    allowed = f"; max_pixels allows {limit}" if limit is not None else ""
    return ImageError("too_large", f"image of too many pixels ({found}){allowed}")
