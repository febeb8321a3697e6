"""Parses formats made of ISO base media boxes: JPEG 2000, AVIF and HEIC."""

from __future__ import annotations

from collections.abc import Iterator

from vlmodel.images.containers.base import ImageHeader, read_big_endian

JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
CODESTREAM = b"\xff\x4f\xff\x51"
"""First bytes of a JPEG 2000 file with boxes, and of one without."""

_MAX_BOXES = 4096
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_IMAGE_BOXES = (b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip", b"uuid")


def read_jpeg2000_header(data: bytes) -> ImageHeader:
    """Parse the header of a JPEG 2000 file; bytes after the image count as metadata."""
    end = find_jpeg2000_end(data)
    metadata = ((end, len(data)),) if end is not None and end < len(data) else ()
    return ImageHeader("jpeg2000", metadata=metadata, size=_read_jpeg2000_size(data))


def read_avif_or_heif_header(data: bytes) -> ImageHeader | None:
    """Parse the header of an AVIF or HEIC file, recognized by the brands in its first box; None for other media."""
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(read_big_endian(data, 0), len(data), 256), 4))}
    if brands & _AVIF_BRANDS:
        return ImageHeader("avif")
    return ImageHeader("heif") if brands & _HEIF_BRANDS else None


def find_jpeg2000_end(data: bytes, _header: ImageHeader | None = None) -> int | None:
    """Find the position after the last tile of a JPEG 2000 file by adding up the lengths of its tile-parts."""
    at, end = _find_jpeg2000_codestream(data)
    if at < 0:
        return None
    at += 2
    while at + 10 <= end and data[at] == 0xFF:
        if data[at + 1] == 0x90:  # a tile-part, with the length of all of it; 0 means up to the end
            length = read_big_endian(data, at + 6)
            at = at + max(length, 12) if length else end - 2
        else:
            at += 2 + read_big_endian(data, at + 2, 2)
    return at + 2 if at + 2 <= end and data.startswith(b"\xff\xd9", at) else None


def find_heif_end(data: bytes, _header: ImageHeader) -> int | None:
    """Find the position after the last box of an AVIF or HEIC image; data after it, such as a video, does not belong to
    the image.
    """
    image_end, has_image = 0, False
    for kind, _start, end in _iterate_iso_media_boxes(data, 0, len(data)):
        if kind not in _IMAGE_BOXES:
            break
        image_end, has_image = end, has_image or kind == b"meta"
    return image_end if has_image and image_end <= len(data) else None


def hide_avif_exif(data: bytes) -> bytes:
    """Rename the EXIF item of an AVIF file so that decoders ignore it: Pillow refuses a file with broken EXIF, and the
    rotation of an AVIF is stored elsewhere.
    """
    for kind, start, end in _iterate_iso_media_boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, first, last in _iterate_iso_media_boxes(
            data, start + 4, min(end, len(data))
        ):  # after a version and flags
            if inner != b"iinf":
                continue
            patched = bytearray(data)
            items = first + (6 if data[first : first + 1] == b"\0" else 8)
            for item, place, _ in _iterate_iso_media_boxes(data, items, min(last, len(data))):
                name = place + (8 if data[place : place + 1] == b"\2" else 10)
                if item == b"infe" and data[name : name + 4] == b"Exif":
                    patched[name : name + 4] = b"skip"
            return bytes(patched)
    return data


def _iterate_iso_media_boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start of the content, end) of each box of an ISO media file; the last end may exceed ``end``."""
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        size, kind, start = read_big_endian(data, at), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = read_big_endian(data, at + 8, 8), at + 16
        box_end = end if size == 0 else at + size
        if box_end < start:
            return
        yield kind, start, box_end
        at = box_end


def _find_jpeg2000_codestream(data: bytes) -> tuple[int, int]:
    """Find the start and end of a JPEG 2000 codestream, as far as the file goes; (-1, 0) if there is none."""
    if data.startswith(CODESTREAM):
        return 0, len(data)
    places = (
        (start, min(end, len(data)))
        for kind, start, end in _iterate_iso_media_boxes(data, 0, len(data))
        if kind == b"jp2c"
    )
    return next(places, (-1, 0))


def _read_jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """Read the image size from the codestream of a JPEG 2000 file, as the decoder does; the box before it may state
    another size.
    """
    at, _ = _find_jpeg2000_codestream(data)
    if at < 0 or not data.startswith(CODESTREAM, at) or at + 24 > len(data):
        return None
    right, bottom, left, top = (read_big_endian(data, at + 8 + 4 * n) for n in range(4))
    return max(0, bottom - top), max(0, right - left)
