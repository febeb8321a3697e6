"""Parses the header of an image file of any known format (``containers/``).

The index, the decoders and the service all read it here. Nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Callable

from vlmodel.images.containers import boxes, jpeg, png, tiff, webp
from vlmodel.images.containers.base import ImageHeader

WITHOUT_END = ("gif", "bmp")
"""Formats whose files are known to be complete only once they are decoded."""

_ENDS: dict[str, Callable[[bytes, ImageHeader], int | None]] = {
    "jpeg": jpeg.find_jpeg_end,
    "png": png.find_png_end,
    "webp": webp.find_webp_end,
    "tiff": tiff.find_tiff_end,
    "jpeg2000": boxes.find_jpeg2000_end,
    "avif": boxes.find_heif_end,
    "heif": boxes.find_heif_end,
}


def read_image_header(data: bytes) -> ImageHeader | None:
    """Parse the header of an image file, whose format its first bytes tell; None for unknown formats."""
    if data.startswith(b"\xff\xd8\xff"):
        return jpeg.read_jpeg_header(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return png.read_png_header(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return webp.read_webp_header(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return ImageHeader("gif")
    if data.startswith(b"BM"):
        return ImageHeader("bmp")
    if data.startswith(tiff.SIGNATURES):
        return ImageHeader("tiff")
    if data.startswith((boxes.JP2, boxes.CODESTREAM)):
        return boxes.read_jpeg2000_header(data)
    return boxes.read_avif_or_heif_header(data) if data[4:8] == b"ftyp" else None


def remove_image_metadata(data: bytes, header: ImageHeader) -> bytes:
    """Remove the metadata from an image file, as readers may fail on it; the file is returned unchanged if it
    has none.
    """
    if header.format == "avif":
        return boxes.hide_avif_exif(data)
    if not header.metadata:
        return data
    pieces, at = [], 0
    for start, end in header.metadata:
        pieces.append(data[at:start])
        at = end
    rest = b"".join([*pieces, data[at:]])
    return webp.repair_webp_header(rest) if header.format == "webp" else rest


def find_image_end(data: bytes, header: ImageHeader) -> int | None:
    """Find the position after the image's last byte, whatever follows in the file; None if the image is cut off.

    Of an animation the first image counts. Formats ``WITHOUT_END`` take the whole file.
    """
    end = _ENDS.get(header.format)
    return len(data) if end is None else end(data, header)


def is_complete_image(data: bytes, header: ImageHeader) -> bool:
    """Whether the file contains the end of the image; always True for formats in ``WITHOUT_END``."""
    if header.format == "jpeg" and header.scan >= 0 and not header.buffered:
        # A single scan cannot contain the end marker, and the usual file ends with it: fast to find from behind.
        return data.rfind(b"\xff\xd9", header.scan) >= 0
    return find_image_end(data, header) is not None


def is_plain_jpeg(header: ImageHeader | None) -> bool:
    """Whether the header is of a JPEG with 8 bits a channel, grey or in colour, that has a scan."""
    return header is not None and header.scan >= 0 and header.size is not None and header.components in (1, 3)
