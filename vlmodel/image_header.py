"""What the container of an image file says: its format, its turn, where its pixels are and where the picture ends.

The index, the decoder and the GPU decoder all read it here. The segments, chunks and boxes of a file are walked by
their lengths; marks are never searched for, as a thumbnail, a profile or a text may hold them too. Nothing is decoded,
and nothing that a file says beside its pixels is an error: it tells the turn, or it is passed over.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

_ORIENTATION_TAG = 0x0112
_STRIPS = ((273, 279), (324, 325))
"""Tags of TIFF: where the strips or the tiles lie, and how long they are."""
_TIFF_TYPES = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 16: ("Q", 8)}
"""TIFF's types of whole numbers: struct's letter, and the bytes of each."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_MAX_SEGMENTS = 4096
"""Segments before the scan of a JPEG, and boxes, that are walked; a sound file has a few hundred at most."""
_MAX_METADATA = 1 << 20
"""Bytes of a compressed text that are looked at for a turn."""

# Marker bytes of JPEG.
_SOI, _EOI, _SOS, _COM, _APP0, _APP1, _ADOBE, _APP15 = 0xD8, 0xD9, 0xDA, 0xFE, 0xE0, 0xE1, 0xEE, 0xEF
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES = frozenset((0xC4, 0xCC, 0xDB, 0xDD))
_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
"""Markers that have no length."""
_IN_SCAN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""A marker that ends the entropy-coded data of a scan."""

_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_WEBP_EXIF, _WEBP_XMP, _WEBP_ICC = 0x08, 0x04, 0x20
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_CODESTREAM = b"\xff\x4f\xff\x51"


class Header(NamedTuple):
    """What an image file says of itself.

    Attributes:
        format: "jpeg", "png", "webp", "gif", "bmp", "tiff", "jpeg2000", "avif" or "heif".
        orientation: EXIF's, from 1 (upright) to 8, as EXIF or else XMP says. 1 for the formats that Pillow turns itself
            (TIFF) or whose turn is no metadata (AVIF, HEIC).
        metadata: the byte ranges that hold no pixels, as (first, behind the last), in order.
        scan: where the first scan of a JPEG begins (its marker); -1 where none was reached, and for other formats.
        size: (height, width) as stored, of JPEG, PNG, WebP and JPEG 2000; None for others, and where it is not there.
        frame: the marker of a JPEG's frame, such as 0xC0; 0 for other formats.
        components: of a JPEG of 8 bits: 1 of grey, 3 of colours, 4 of CMYK; 0 for all else.
        buffered: whether a decoder holds all of the image at once, whatever part of its size is asked for.
    """

    format: str
    orientation: int = 1
    metadata: tuple[tuple[int, int], ...] = ()
    scan: int = -1
    size: tuple[int, int] | None = None
    frame: int = 0
    components: int = 0
    buffered: bool = True


def read_header(data: bytes) -> Header | None:
    """The header of a file of a known format, by its first bytes; None if it is none."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Header("gif")
    if data.startswith(b"BM"):
        return Header("bmp")
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return Header("tiff")
    if data.startswith((_JP2, _CODESTREAM)):
        end = _end_of_jpeg2000(data)
        behind = ((end, len(data)),) if end is not None and end < len(data) else ()
        return Header("jpeg2000", metadata=behind, size=_jpeg2000_size(data))
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(_u32(data, 0), len(data), 256), 4))}
        if brands & _AVIF_BRANDS:
            return Header("avif")
        if brands & _HEIF_BRANDS:
            return Header("heif")
    return None


def without_metadata(data: bytes, header: Header) -> bytes:
    """The file without its metadata, so that no reader can fail at it; the same bytes where it has none."""
    if header.format == "avif":
        return _without_exif_item(data)
    if not header.metadata:
        return data
    parts, at = [], 0
    for first, behind in header.metadata:
        parts.append(data[at:first])
        at = behind
    parts.append(data[at:])
    alone = b"".join(parts)
    if header.format != "webp":
        return alone
    alone = b"RIFF" + (len(alone) - 8).to_bytes(4, "little") + alone[8:]
    if alone[12:16] == b"VP8X":
        flags = alone[20] & ~(_WEBP_EXIF | _WEBP_XMP | _WEBP_ICC)
        alone = alone[:20] + bytes([flags]) + alone[21:]
    return alone


def image_end(data: bytes, header: Header) -> int | None:
    """How many bytes the picture takes of the file, whatever follows it; None where its end is not there.

    Of what moves, the first picture is meant. Formats whose containers do not tell take all of the file.
    """
    end = _ENDS.get(header.format)
    return len(data) if end is None else end(data, header)


def is_complete(data: bytes, header: Header) -> bool:
    """Whether the picture's end is there."""
    if header.format == "jpeg" and header.scan >= 0 and not header.buffered:
        # Nothing but its only scan, which cannot hold the mark, comes before it. The usual file ends with it.
        return data.rfind(b"\xff\xd9", header.scan) >= 0
    return image_end(data, header) is not None


# ---- JPEG


def _jpeg(data: bytes) -> Header:
    """Its segments up to the first scan. What is no segment is passed over, as libjpeg does, which remarks on it."""
    at, size, components, frame = 2, None, 0, 0
    metadata: list[tuple[int, int]] = []
    exif: list[bytes] = []
    xmp = b""
    last = len(data) - 4
    for _ in range(_MAX_SEGMENTS):
        if at > last:
            break
        if data[at] != 0xFF:
            at = data.find(b"\xff", at)
            if not 0 <= at <= last:
                break
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _SOS:
            # A scan of some components alone is kept, as progressive ones are, until all have come.
            buffered = frame & 3 == 2 or data[at + 4 : at + 5] != bytes([components])
            return Header("jpeg", _turn(b"".join(exif), xmp), tuple(metadata), at, size, frame, components, buffered)
        if marker in _ALONE:
            at += 2
            continue
        length = data[at + 2] << 8 | data[at + 3]
        first, behind = at + 4, at + 2 + length
        if length < 2 or behind > len(data):
            break
        if marker in _TABLES:
            at = behind
            continue
        if marker == _COM or (_APP0 < marker <= _APP15 and marker != _ADOBE):
            metadata.append((at, behind))
            if marker == _APP1:
                if data.startswith(b"Exif\0\0", first):
                    # One block may go over several segments.
                    exif.append(data[first + 6 * bool(exif) : behind])
                elif data.startswith(_XMP, first):
                    xmp = data[first + len(_XMP) : behind]
        elif marker in _FRAMES and length >= 8:
            size = (data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8])
            components, frame = data[at + 9] if data[at + 4] == 8 else 0, marker
        at = behind
    return Header("jpeg", _turn(b"".join(exif), xmp), tuple(metadata), size=size)


def _end_of_jpeg(data: bytes, header: Header) -> int | None:
    """Behind the mark that ends it, which entropy-coded data cannot hold; tables between two scans are stepped over."""
    at = header.scan
    if at < 0:
        return None
    while at + 4 <= len(data):
        at += 2 + (data[at + 2] << 8 | data[at + 3])  # the segment at hand
        found = _IN_SCAN.search(data, at)
        if found is None:
            return None
        at = found.start()
        if data[at + 1] == _EOI:
            return at + 2
    return None


# ---- PNG


def _png(data: bytes) -> Header:
    metadata: list[tuple[int, int]] = []
    exif, xmp, ends = b"", b"", 0
    for kind, at, behind in _png_chunks(data):
        ends = behind
        if kind in _PNG_PIXELS:
            continue
        if not kind[0] & 0x20:  # a critical one that is not known: no reader can pass over it
            ends = 0
            break
        metadata.append((at, behind))
        if kind == b"eXIf":
            exif = exif or data[at + 8 : behind - 4]
        elif kind in (b"iTXt", b"zTXt", b"tEXt"):
            name, _, text = data[at + 8 : behind - 4].partition(b"\0")
            if name == b"XML:com.adobe.xmp":
                xmp = _png_text(kind, text)
            elif name == b"Raw profile type exif" and not exif:
                exif = _raw_profile(_png_text(kind, text))
    if ends and data[ends - 8 : ends - 4] == b"IEND" and ends < len(data):
        metadata.append((ends, len(data)))
    size = (_u32b(data, 20), _u32b(data, 16)) if data[12:16] == b"IHDR" else None
    return Header("png", _turn(exif, xmp), tuple(metadata), size=size)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, first byte, behind the last) of each whole chunk, the end's included."""
    at = 8
    while at + 12 <= len(data):
        kind, behind = data[at + 4 : at + 8], at + 12 + _u32b(data, at)
        if not kind.isalpha() or behind > len(data):
            return
        yield kind, at, behind
        if kind == b"IEND":
            return
        at = behind


def _png_text(kind: bytes, text: bytes) -> bytes:
    """What follows a text chunk's keyword, read."""
    if kind == b"tEXt":
        return text
    if kind == b"zTXt":
        return _inflated(text[1:])
    compressed, rest = text[:1] == b"\1", text[2:].split(b"\0", 2)
    return (_inflated(rest[2]) if compressed else rest[2]) if len(rest) == 3 else b""


def _raw_profile(text: bytes) -> bytes:
    """ImageMagick's way of keeping EXIF: a name, a length and the bytes in hexadecimal."""
    lines = text.split(b"\n", 3)
    try:
        return bytes.fromhex(lines[3].decode("ascii")) if len(lines) == 4 else b""
    except ValueError:
        return b""


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MAX_METADATA)
    except zlib.error:
        return b""


def _end_of_png(data: bytes, _: Header) -> int | None:
    return next((behind for kind, _, behind in _png_chunks(data) if kind == b"IEND"), None)


# ---- WebP


def _webp(data: bytes) -> Header:
    metadata: list[tuple[int, int]] = []
    exif, xmp = b"", b""
    ends = min(8 + _u32(data, 4), len(data))
    flags = data[20] if data[12:16] == b"VP8X" and len(data) > 20 else 0
    at = 12
    while at + 8 <= ends:
        kind, length = data[at : at + 4], _u32(data, at + 4)
        behind = at + 8 + length + length % 2
        if behind > ends + length % 2:
            break
        behind = min(behind, ends)
        if kind not in _WEBP_PIXELS:
            metadata.append((at, behind))
            if kind == b"EXIF" and flags & _WEBP_EXIF:
                exif = exif or data[at + 8 : at + 8 + length]
            elif kind == b"XMP " and flags & _WEBP_XMP:
                xmp = xmp or data[at + 8 : at + 8 + length]
        at = behind
    if at == ends < len(data):
        metadata.append((ends, len(data)))
    return Header("webp", _turn(exif, xmp), tuple(metadata), size=_webp_size(data))


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
        case b"VP8L":
            sides = _u32(data, 21)
            return 1 + (sides >> 14 & 0x3FFF), 1 + (sides & 0x3FFF)
        case b"VP8 ":
            return _u16(data, 28) & 0x3FFF, _u16(data, 26) & 0x3FFF
    return None


def _end_of_webp(data: bytes, _: Header) -> int | None:
    end = 8 + _u32(data, 4)
    return end if end <= len(data) else None


# ---- GIF


def _end_of_gif(data: bytes, _: Header) -> int | None:
    """Behind the data of the first picture."""

    def behind_blocks(at: int) -> int:
        while at < len(data) and data[at]:
            at += 1 + data[at]
        return at + 1

    def colours(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    if len(data) < 13:
        return None
    at = 13 + colours(data[10])
    while at + 10 < len(data):
        if data[at] == 0x21:
            at = behind_blocks(at + 2)
        elif data[at] == 0x2C:
            end = behind_blocks(at + 11 + colours(data[at + 9]))
            return end if end <= len(data) else None
        elif data[at] == 0x3B:
            return None
        else:
            at += 1  # Pillow passes over what is neither
    return None


# ---- BMP


def _end_of_bmp(data: bytes, _: Header) -> int | None:
    """By the picture's own numbers: the size of the file in its header is often wrong, and no reader needs it."""
    if len(data) < 30:
        return None
    start = _u32(data, 10)
    if _u32(data, 14) < 40:
        width, height, bits, packed = _u16(data, 18), _u16(data, 20), _u16(data, 24), False
    else:
        width, height = _u32(data, 18), abs(int.from_bytes(data[22:26], "little", signed=True))
        bits, packed = _u16(data, 28), _u32(data, 30) in (1, 2)
    end = start + (_u32(data, 34) if packed else (width * bits + 31) // 32 * 4 * height)
    return end if end <= len(data) else None


# ---- TIFF, and EXIF, which is one


def _turn(exif: bytes, xmp: bytes) -> int:
    """The orientation that a block of EXIF says, or else one of XMP; 1 where neither says one that there is."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    found = next(iter(_numbers(exif, {_ORIENTATION_TAG: 1}).get(_ORIENTATION_TAG, ())), None)
    if found is None and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _numbers(data: bytes, wanted: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """The whole numbers of a TIFF's first directory by tag, as far as they lie in the data; nothing is raised.

    Args:
        wanted: the tags, and how many numbers of each at most.
    """
    found: dict[int, tuple[int, ...]] = {}
    try:
        order, kinds, first, count, step = _directory(data)
        for at in range(first, min(first + step * count, len(data) - step + 1), step):
            tag, kind = struct.unpack_from(f"{order}HH", data, at)
            if tag not in wanted or tag in found or kind not in _TIFF_TYPES:
                continue
            (numbers,) = struct.unpack_from(order + kinds, data, at + 4)
            letter, size = _TIFF_TYPES[kind]
            room = (step - 4) // 2  # for numbers in place of their offset: 4 bytes, of a BigTIFF 8
            inside = at + 4 + room
            place = inside if size * numbers <= room else struct.unpack_from(order + kinds, data, inside)[0]
            numbers = min(numbers, wanted[tag], (len(data) - place) // size)
            if numbers > 0:
                found[tag] = struct.unpack_from(f"{order}{numbers}{letter}", data, place)
    except (struct.error, OverflowError):
        pass
    return found


def _directory(data: bytes) -> tuple[str, str, int, int, int]:
    """Byte order, struct's letter of an offset, first entry, number of entries and bytes of each; no TIFF has none."""
    order, version = {b"II": "<", b"MM": ">"}.get(data[:2], ""), data[2:4]
    if order and version in (b"*\0", b"\0*"):
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        return order, "I", first + 2, struct.unpack_from(f"{order}H", data, first)[0], 12
    if order and version in (b"+\0", b"\0+"):
        (first,) = struct.unpack_from(f"{order}Q", data, 8)
        return order, "Q", first + 8, struct.unpack_from(f"{order}Q", data, first)[0], 20
    return "<", "I", 0, 0, 12


def _end_of_tiff(data: bytes, _: Header) -> int | None:
    """Behind the last strip or tile of the first page, and behind its directory."""
    tags = _numbers(data, dict.fromkeys(chain(*_STRIPS), len(data)))
    for starts, lengths in _STRIPS:
        if starts in tags:
            first, count, step = _directory(data)[2:]
            strips = map(sum, zip(tags[starts], tags.get(lengths, ()), strict=False))
            end = max(chain(strips, (first + step * count,)))
            return end if end <= len(data) else None
    return None


# ---- Boxes: JPEG 2000, AVIF, HEIC


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, first byte of what it holds, behind its last) of each box; the last may go beyond the end."""
    for _ in range(_MAX_SEGMENTS):
        if at + 8 > end:
            return
        size, kind, start = _u32b(data, at), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        behind = end if size == 0 else at + size
        if behind < start:
            return
        yield kind, start, behind
        at = behind


def _end_of_boxes(data: bytes, header: Header) -> int | None:
    ends, has_pictures = 0, False
    for kind, _, behind in _boxes(data, 0, len(data)):
        # What follows a file, such as a film, need be no box of these.
        if kind not in (b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip", b"uuid"):
            break
        ends, has_pictures = behind, has_pictures or kind == b"meta"
    return ends if has_pictures and ends <= len(data) else None


def _without_exif_item(data: bytes) -> bytes:
    """An AVIF whose EXIF is of no kind that libavif knows: its turn is no metadata, and Pillow refuses broken EXIF."""
    for kind, start, behind in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, first, last in _boxes(data, start + 4, min(behind, len(data))):  # a version and flags first
            if inner != b"iinf":
                continue
            patched = bytearray(data)
            items = first + (6 if data[first : first + 1] == b"\0" else 8)
            for item, place, _ in _boxes(data, items, min(last, len(data))):
                named = place + (8 if data[place : place + 1] == b"\2" else 10)
                if item == b"infe" and data[named : named + 4] == b"Exif":
                    patched[named : named + 4] = b"skip"
            return bytes(patched)
    return data


def _codestream(data: bytes) -> tuple[int, int]:
    """Its first byte and the one behind its last, as far as the file goes; (-1, 0) where there is none."""
    if data.startswith(_CODESTREAM):
        return 0, len(data)
    places = ((start, min(end, len(data))) for kind, start, end in _boxes(data, 0, len(data)) if kind == b"jp2c")
    return next(places, (-1, 0))


def _jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """By the codestream, which is what is decoded; the box before it may say another."""
    at, _ = _codestream(data)
    if at < 0 or not data.startswith(_CODESTREAM, at) or at + 24 > len(data):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    return max(0, bottom - top), max(0, right - left)


def _end_of_jpeg2000(data: bytes, _: Header | None = None) -> int | None:
    """Behind the last tile, by the lengths of tile-parts."""
    at, end = _codestream(data)
    if at < 0:
        return None
    at += 2
    while at + 10 <= end and data[at] == 0xFF:
        if data[at + 1] == 0x90:  # a tile-part; its length is that of all of it, and 0 goes to the end
            length = _u32b(data, at + 6)
            at = at + max(length, 12) if length else end - 2
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return at + 2 if at + 2 <= end and data.startswith(b"\xff\xd9", at) else None


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _u32b(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


_ENDS: dict[str, Callable[[bytes, Header], int | None]] = {
    "jpeg": _end_of_jpeg,
    "png": _end_of_png,
    "webp": _end_of_webp,
    "gif": _end_of_gif,
    "bmp": _end_of_bmp,
    "tiff": _end_of_tiff,
    "jpeg2000": _end_of_jpeg2000,
    "avif": _end_of_boxes,
    "heif": _end_of_boxes,
}
