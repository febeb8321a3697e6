"""From an image file to a square of pixels: upright, RGB, on white where it is transparent.

torch is imported where something is resized: processes that only look at headers stay small.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Image formats that are decoded; Pillow's other readers are never given any data."""

Resize = Literal["squash", "crop"]

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


def decode(data: bytes, size: int, resize: Resize, max_pixels: int) -> NDArray[np.uint8]:
    """An image as (size, size, 3) uint8 RGB.

    Resized by torch's antialiased bilinear filter, which is Pillow's but for rounding and several times as fast.

    Args:
        resize: "squash" keeps the whole picture and bends its shape; "crop" keeps its shape and the middle square.

    Raises:
        ImageError: the bytes are cut off, are no image of a format in ``FORMATS``, or are one of too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise _too_large(f"{image.width} x {image.height}", max_pixels)
            return _resized(_pixels(image, data, size), size, resize)
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


def upright(image: Image.Image) -> Image.Image:
    """An opened image as RGB: turned as its EXIF orientation says, on white where it is transparent."""
    turn = _turn(image)
    rgb = _rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def _pixels(image: Image.Image, data: bytes, size: int) -> NDArray[np.uint8]:
    # A JPEG can be decoded at a half, quarter or eighth of its size for less. As twice the target is always left, the
    # result is hardly another than that of the full size (Pillow's own thumbnail() does the same).
    scaled = image.draft(None, (2 * size, 2 * size)) is not None and image.decoderconfig[0] > 1  # type: ignore[attr-defined]
    plain = image.format == "JPEG" and image.mode in ("RGB", "L") and _turn(image) is None and not scaled
    if plain and (pixels_HWC := _whole_jpeg(data)) is not None:
        return pixels_HWC
    return np.asarray(upright(image))


def _whole_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels that Pillow would give, by the same library without Pillow's copies; None where Pillow is to judge."""
    try:
        pixels_HWC: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    except ValueError:  # also of what a reader can overlook
        return None
    return pixels_HWC


def _resized(pixels_HWC: NDArray[np.uint8], size: int, resize: Resize) -> NDArray[np.uint8]:
    height, width = pixels_HWC.shape[:2]
    if resize == "crop" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels_HWC = pixels_HWC[top : top + side, left : left + side]
    if pixels_HWC.shape[:2] == (size, size):
        return pixels_HWC
    import torch

    # From BHWC, as only so torch sees that the channels lie side by side, for which its filter is fast.
    pixels_BHWC = torch.from_numpy(np.require(pixels_HWC[None], requirements=["C", "W"]))
    resized_BCHW = torch.nn.functional.interpolate(
        pixels_BHWC.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", antialias=True
    )
    resized_HWC: NDArray[np.uint8] = resized_BCHW[0].permute(1, 2, 0).numpy()
    return resized_HWC


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


def _too_large(found: str, limit: int) -> ImageError:
    return ImageError("too_large", f"image of too many pixels ({found}); processor.max_pixels allows {limit}")
