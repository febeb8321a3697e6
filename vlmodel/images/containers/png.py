"""Parses PNG files: chunks with a length, a kind and a checksum each."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from vlmodel.images.containers.base import ImageHeader, read_big_endian
from vlmodel.images.containers.exif import read_image_orientation

_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MAX_TEXT = 1 << 20
"""Bytes of a compressed text that are searched for an orientation."""


def read_png_header(data: bytes) -> ImageHeader:
    """Parse the header of a PNG from all of its chunks, as metadata may follow the pixels."""
    metadata: list[tuple[int, int]] = []
    exif, xmp, file_end = b"", b"", 0
    for kind, start, end in _iterate_png_chunks(data):
        file_end = end
        if kind in _PIXEL_CHUNKS:
            continue
        if not kind[0] & 0x20:  # an unknown critical chunk, which no reader may skip
            file_end = 0
            break
        metadata.append((start, end))
        if kind == b"eXIf":
            exif = exif or data[start + 8 : end - 4]
        elif kind in (b"iTXt", b"zTXt", b"tEXt"):
            keyword, _, text = data[start + 8 : end - 4].partition(b"\0")
            if keyword == b"XML:com.adobe.xmp":
                xmp = _read_png_text_chunk(kind, text)
            elif keyword == b"Raw profile type exif" and not exif:
                exif = _parse_raw_exif_profile(_read_png_text_chunk(kind, text))
    if file_end and data[file_end - 8 : file_end - 4] == b"IEND" and file_end < len(data):
        metadata.append((file_end, len(data)))
    size = (read_big_endian(data, 20), read_big_endian(data, 16)) if data[12:16] == b"IHDR" else None
    return ImageHeader("png", read_image_orientation(exif, xmp), tuple(metadata), size=size)


def find_png_end(data: bytes, _: ImageHeader) -> int | None:
    """Find the position after the end chunk of a PNG."""
    return next((end for kind, _, end in _iterate_png_chunks(data) if kind == b"IEND"), None)


def _iterate_png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of each complete chunk of a PNG, up to the end chunk."""
    at = 8
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + read_big_endian(data, at)
        if not kind.isalpha() or end > len(data):
            return
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end


def _read_png_text_chunk(kind: bytes, text: bytes) -> bytes:
    """Return the text after the keyword of a PNG text chunk, decompressed."""
    if kind == b"tEXt":
        return text
    if kind == b"zTXt":
        return _decompress_zlib(text[1:])
    is_compressed, rest = text[:1] == b"\1", text[2:].split(b"\0", 2)
    return (_decompress_zlib(rest[2]) if is_compressed else rest[2]) if len(rest) == 3 else b""


def _parse_raw_exif_profile(text: bytes) -> bytes:
    """Parse EXIF in ImageMagick's text form: a line with a name, a line with a length, then the bytes in hexadecimal.
    b"" if it is not of that form.
    """
    lines = text.split(b"\n", 3)
    try:
        return bytes.fromhex(lines[3].decode("ascii")) if len(lines) == 4 else b""
    except ValueError:
        return b""


def _decompress_zlib(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MAX_TEXT)
    except zlib.error:
        return b""
