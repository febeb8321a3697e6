"""From an image file to a square of pixels: upright, RGB, on white where it is transparent.

torch is imported where something is resized: processes that only look at headers stay small.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Image formats that are decoded; Pillow's other readers are never given any data."""

_SIGNATURES = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF8", "gif"), (b"BM", "bmp"))

Resize = Literal["squash", "crop"]

_KEPT = 2
"""A JPEG can be decoded at a half, quarter or eighth of its size for less. So many times the target is always left, so
that the result is hardly another than that of the full size (Pillow's own thumbnail() does the same)."""

_WHITE = (255, 255, 255, 255)
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


def decode(
    data: bytes, size: int, resize: Resize, max_pixels: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """An image as (size, size, 3) uint8 RGB.

    Resized by torch's antialiased bilinear filter, which is Pillow's but for rounding and several times as fast.

    Args:
        resize: "squash" keeps the whole picture and bends its shape; "crop" keeps its shape and the middle square.
        out: where to put the pixels, such as a place in a batch; new memory if not given.

    Raises:
        ImageError: the bytes are cut off, are no image of a format in ``FORMATS``, or are one of too many pixels.
    """
    try:
        if (pixels_HWC := _plain_jpeg(data, size, max_pixels)) is None:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _require_fewer(image.height, image.width, max_pixels)
                draft(image, size)
                pixels_HWC = np.asarray(upright(image))
        return _resized(pixels_HWC, size, resize, out)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), max_pixels) from None
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        cut_off = isinstance(error, EOFError) or "truncated" in str(error).lower()
        kind: Literal["truncated", "undecodable"] = "truncated" if cut_off else "undecodable"
        first = data[:8].hex(" ") or "no bytes"
        raise ImageError(
            kind, f"{kind} image ({len(data)} bytes, starting {first}): {error or type(error).__name__}"
        ) from error


def extension_of(data: bytes) -> str | None:
    """The usual extension of a file of one of ``FORMATS``, by its first bytes; None if it is none."""
    for signature, extension in _SIGNATURES:
        if data.startswith(signature):
            return extension
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def draft(image: Image.Image, side: int) -> None:
    """Have an opened JPEG decoded at a part of its size, where that is enough for a square of this side."""
    image.draft(None, (_KEPT * side, _KEPT * side))


def upright(image: Image.Image) -> Image.Image:
    """An opened image as RGB: turned as its EXIF orientation says, on white where it is transparent."""
    turn = _turn(image)
    rgb = _rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


class JpegHeader(NamedTuple):
    """What the header of a plain JPEG says: one that is upright as it is, of 8 bits and of common colours."""

    height: int
    width: int
    colours: str


def plain_jpeg(data: bytes) -> JpegHeader | None:
    """The header of a plain JPEG; None for all else."""
    # What turns a picture stands before its first scan.
    head = data[: data.find(b"\xff\xda")]
    if not head.startswith(b"\xff\xd8\xff") or b"Exif\0\0" in head or b"Orientation" in head:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "RGB", "Gray"):
        return None
    return JpegHeader(height, width, colours)


def _plain_jpeg(data: bytes, size: int, max_pixels: int) -> NDArray[np.uint8] | None:
    """The pixels that Pillow would give, by the same library in a third of the steps; None where Pillow is to judge."""
    header = plain_jpeg(data)
    if header is None:
        return None
    _require_fewer(header.height, header.width, max_pixels)
    if min(header.height, header.width) >= 2 * _KEPT * size:
        return None  # the large ones Pillow decodes smaller
    try:
        pixels_HWC: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    except ValueError:  # also of what a reader can overlook
        return None
    return pixels_HWC


def middle_square(height: int, width: int) -> tuple[int, int, int]:
    """Its first row, first column and side."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def _resized(
    pixels_HWC: NDArray[np.uint8], size: int, resize: Resize, out_HWC: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    height, width = pixels_HWC.shape[:2]
    if resize == "crop" and height != width:
        top, left, side = middle_square(height, width)
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
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit greys at 255 instead of scaling them.
        grey = np.asarray(image).astype(np.uint32).clip(0, 65535)
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the image upright by its EXIF orientation; None if it is, or does not say."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata in a picture that may be whole
        return None


def _require_fewer(height: int, width: int, limit: int) -> None:
    if height * width > limit:
        raise _too_large(f"{width} x {height}", limit)


def _too_large(found: str, limit: int) -> ImageError:
    return ImageError("too_large", f"image of too many pixels ({found}); processor.max_pixels allows {limit}")
