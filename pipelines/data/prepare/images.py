"""Resizes and encodes an image for storage; bytes are kept unchanged if the image does not change."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

from PIL import Image

from pipelines.data.prepare.config import PrepareConfig
from pipelines.data.prepare.hashing import perceptual_hash
from pipelines.data.tars.errors import SampleError, medium_reason
from vlmodel.images.errors import ImageError
from vlmodel.images.pillow import open_image

_EXTENSIONS = {"jpeg": "jpg", "tiff": "tif", "jpeg2000": "jp2", "heif": "heic"}
"""Of members in a tar, where they are not the format's name."""
# Formats that are written; "same" makes lossless PNGs of the others.
_WRITTEN = ("jpeg", "webp")
_HASHED_SIDE = 64
"""Decoded size of an image that is only hashed."""


class ImageFormatAndSize(NamedTuple):
    """An image as the index describes it: ``format`` is one of ``vlmodel.images.pillow.FORMATS``; the size is that of
    the upright image, in pixels.
    """

    format: str
    width: int
    height: int


class EncodedImage(NamedTuple):
    """An image in the encoding in which the prepared tars will store it.

    Attributes:
        data: the encoded image; None where the source's bytes are kept.
        extension: of its member in a tar.
        width, height: of the upright image, in pixels.
        hash: its perceptual hash; 0 if that was not asked for.
    """

    data: bytes | None
    extension: str
    width: int
    height: int
    hash: int


def target_format_and_size(image: ImageFormatAndSize, config: PrepareConfig) -> ImageFormatAndSize:
    """Decide the format and the size in which an image will be stored. It is never enlarged, and has at least one pixel
    on each side.
    """
    long, short = max(image.width, image.height), min(image.width, image.height)
    scale = min(1.0, (config.longest_side or long) / long, (config.shortest_side or short) / short)
    width, height = (max(1, round(side * scale)) for side in (image.width, image.height))
    form = image.format if config.format == "same" else config.format
    if form not in _WRITTEN and (width, height) != (image.width, image.height):
        form = "png"
    return ImageFormatAndSize(form, width, height)


def needs_decoding(image: ImageFormatAndSize, config: PrepareConfig) -> bool:
    """Whether preparing an image requires decoding it."""
    return config.near_duplicates > 0 or target_format_and_size(image, config) != image


def encode_image(data: bytes, image: ImageFormatAndSize, config: PrepareConfig) -> EncodedImage:
    """Decode the image as the processor does, hash it if requested, and resize and encode it if it changes.

    An image that changes loses its metadata; EXIF's orientation is applied before.

    Args:
        image: what ``data`` is, as the index says.

    Raises:
        SampleError: it cannot be decoded.
    """
    wanted = target_format_and_size(image, config)
    changes = wanted != image
    side = max(wanted.width, wanted.height) if changes else _HASHED_SIDE
    try:
        with warnings.catch_warnings():
            # The index has left out images that are too large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_image(data) as opened:
                opened.decode_at_reduced_size((side, side))
                rgb = opened.decode_upright()
    except ImageError as error:
        raise SampleError(medium_reason("undecodable", "image"), f"{image.format}: {error}") from None
    hashed = perceptual_hash(rgb) if config.near_duplicates else 0
    encoded = _encode_image(rgb, wanted, config.quality) if changes else None
    return EncodedImage(encoded, _EXTENSIONS.get(wanted.format, wanted.format), wanted.width, wanted.height, hashed)


def keep_image_as_stored(image: ImageFormatAndSize) -> EncodedImage:
    """Describe an image that is stored unchanged and is not hashed."""
    return EncodedImage(None, _EXTENSIONS.get(image.format, image.format), image.width, image.height, 0)


def _encode_image(rgb: Image.Image, wanted: ImageFormatAndSize, quality: int) -> bytes:
    size = (wanted.width, wanted.height)
    if rgb.size != size:
        rgb = rgb.resize(size, Image.Resampling.LANCZOS)
    # A new image, as the source's metadata would be written again.
    clean = Image.frombytes("RGB", rgb.size, rgb.tobytes())
    out = io.BytesIO()
    settings = {"jpeg": {"quality": quality, "optimize": True}, "webp": {"quality": quality}, "png": {}}
    clean.save(out, wanted.format, **settings[wanted.format])
    return out.getvalue()
