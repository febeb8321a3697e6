"""Image files as cameras, editors and converters write them, made small. All show the same picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

WIDTH, HEIGHT = 96, 64


def picture() -> Image.Image:
    """Four soft corners, all different; no two turns of it are alike."""
    corners = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 40]]], np.uint8)
    return Image.fromarray(corners).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def saved(form: str = "JPEG", image: Image.Image | None = None, **options: Any) -> bytes:
    """The picture, or ``image``, as a file."""
    out = io.BytesIO()
    (image or picture()).save(out, form, **({"quality": 95, "subsampling": 0} if form == "JPEG" else {}) | options)
    return out.getvalue()


def exif(orientation: int, order: str = "<") -> bytes:
    """A block of EXIF with a turn and nothing else, without its leading name."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def segment(jpeg: bytes, marker: int, payload: bytes) -> bytes:
    """The JPEG with one more segment, the first of all."""
    return jpeg[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def before_scan(jpeg: bytes, extra: bytes) -> bytes:
    at = jpeg.index(b"\xff\xda")
    return jpeg[:at] + extra + jpeg[at:]


def photoshop(thumbnail: bytes) -> bytes:
    """An editor's block that holds a small JPEG."""
    return b"Photoshop 3.0\0" + b"8BIM\x04\x0c\0\0" + struct.pack(">I", len(thumbnail) + 28) + bytes(28) + thumbnail


def chunk(kind: bytes, payload: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png_with(extra: bytes, before: bytes, png: bytes | None = None) -> bytes:
    """A PNG with chunks before its first one of a kind."""
    png = png or saved("PNG")
    at = png.index(before) - 4
    return png[:at] + extra + png[at:]


def raw_png(depth: int, colour: int, rows: bytes, width: int, height: int, *extra: bytes) -> bytes:
    """A PNG of rows that begin with a filter byte each."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + chunk(b"IEND", b"")


def tiff_of(tags: dict[int, int]) -> bytes:
    """A TIFF of these entries, without pixels."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def animated(form: str, **options: Any) -> bytes:
    other = Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9))
    return saved(form, save_all=True, append_images=[other, other], duration=50, **options)


FILM = b"\0\0\0\x18ftypmp42" + bytes(b % 251 for b in range(100 << 10)) + bytes(5 << 10)
SIDEWAYS = exif(6)

# name -> (file, orientation, whether the GPU takes it)
FILES: dict[str, tuple[Callable[[], bytes], int, bool]] = {
    "jpeg": (saved, 1, True),
    "jpeg, progressive": (lambda: saved(progressive=True), 1, True),
    "jpeg, restart markers": (lambda: saved(restart_marker_blocks=2), 1, True),
    "jpeg, EXIF upright": (lambda: segment(saved(), 0xE1, b"Exif\0\0" + exif(1)), 1, True),
    "jpeg, EXIF of an unknown turn": (lambda: segment(saved(), 0xE1, b"Exif\0\0" + exif(9)), 1, True),
    "jpeg, EXIF": (lambda: segment(saved(), 0xE1, b"Exif\0\0" + SIDEWAYS), 6, False),
    "jpeg, EXIF big-endian": (lambda: segment(saved(), 0xE1, b"Exif\0\0" + exif(8, ">")), 8, False),
    "jpeg, EXIF before the scan": (
        lambda: before_scan(saved(), segment(b"\xff\xd8", 0xE1, b"Exif\0\0" + SIDEWAYS)[2:]),
        6,
        False,
    ),
    "jpeg, EXIF after a thumbnail": (
        lambda: segment(
            segment(saved(), 0xE1, b"Exif\0\0" + SIDEWAYS), 0xED, photoshop(saved(image=picture().resize((16, 16))))
        ),
        6,
        False,
    ),
    "jpeg, a comment that looks like EXIF": (
        lambda: segment(saved(), 0xFE, b"Exif\0\0" + SIDEWAYS + xmp(6) + b"\xff\xda\xff\xd9"),
        1,
        True,
    ),
    "jpeg, empty EXIF": (lambda: segment(saved(), 0xE1, b"Exif\0\0"), 1, True),
    "jpeg, empty EXIF and another": (
        lambda: segment(segment(saved(), 0xE1, b"Exif\0\0" + SIDEWAYS), 0xE1, b"Exif\0\0"),
        6,
        False,
    ),
    "jpeg, EXIF cut off": (lambda: segment(saved(), 0xE1, b"Exif\0\0" + SIDEWAYS[:14]), 1, True),
    "jpeg, EXIF that is none": (lambda: segment(saved(), 0xE1, b"Exif\0\0no tiff at all"), 1, True),
    "jpeg, EXIF with a wild offset": (
        lambda: segment(saved(), 0xE1, b"Exif\0\0II*\0" + struct.pack("<I", 1 << 31)),
        1,
        True,
    ),
    "jpeg, XMP": (lambda: segment(saved(), 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(3)), 3, False),
    "jpeg, EXIF before XMP": (
        lambda: segment(
            segment(saved(), 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(3)), 0xE1, b"Exif\0\0" + exif(1)
        ),
        1,
        True,
    ),
    "jpeg, broken profile": (lambda: segment(saved(), 0xE2, b"ICC_PROFILE\0\x07\x09" + bytes(3000)), 1, True),
    "jpeg, index of further pictures that is none": (lambda: segment(saved(), 0xE2, b"MPF\0" + bytes(40)), 1, True),
    "jpeg, fill bytes": (lambda: before_scan(saved(), b"\xff\xff\xff"), 1, True),
    "jpeg, a film behind": (lambda: saved() + FILM, 1, True),
    "jpeg, zeros behind": (lambda: saved() + bytes(4096), 1, True),
    "jpeg, further pictures": (lambda: saved("MPO", save_all=True, append_images=[picture().rotate(180)]), 1, True),
    "jpeg, CMYK": (lambda: saved(image=picture().convert("CMYK")), 1, False),
    "jpeg, RGB": (lambda: saved(keep_rgb=True), 1, False),
    "png": (lambda: saved("PNG"), 1, False),
    "png, interlaced by palette": (lambda: saved("PNG", picture().quantize(256)), 1, False),
    "png, EXIF": (lambda: png_with(chunk(b"eXIf", SIDEWAYS), b"IDAT"), 6, False),
    "png, EXIF behind the pixels": (lambda: png_with(chunk(b"eXIf", SIDEWAYS), b"IEND"), 6, False),
    "png, EXIF of a raw converter": (lambda: saved("PNG", exif=b"\0\0\x11\0\0\1\4\0\0\0"), 1, False),
    "png, EXIF in a text": (
        lambda: png_with(
            chunk(
                b"zTXt",
                b"Raw profile type exif\0\0"
                + zlib.compress(b"\nexif\n      34\n" + (b"Exif\0\0" + SIDEWAYS).hex().encode() + b"\n"),
            ),
            b"IDAT",
        ),
        6,
        False,
    ),
    "png, XMP": (lambda: png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(8)), b"IDAT"), 8, False),
    "png, XMP compressed": (
        lambda: png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(8))), b"IDAT"),
        8,
        False,
    ),
    "png, a large text": (lambda: saved("PNG", pnginfo=_text(2 << 20)), 1, False),
    "png, a large profile": (lambda: saved("PNG", icc_profile=bytes(2 << 20)), 1, False),
    "png, a text with a wrong checksum": (
        lambda: png_with(chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0", b"IDAT"),
        1,
        False,
    ),
    "png, bytes behind": (lambda: saved("PNG") + FILM, 1, False),
    "png, animated": (lambda: animated("PNG"), 1, False),
    "webp": (lambda: saved("WEBP", lossless=True), 1, False),
    "webp, EXIF": (lambda: saved("WEBP", lossless=True, exif=b"Exif\0\0" + SIDEWAYS), 6, False),
    "webp, EXIF that is none": (lambda: saved("WEBP", lossless=True, exif=b"Exif\0\0no tiff"), 1, False),
    "webp, XMP": (lambda: saved("WEBP", lossless=True, xmp=xmp(5)), 5, False),
    "webp, profile": (lambda: saved("WEBP", lossless=True, icc_profile=b"none" * 501), 1, False),
    "webp, bytes behind": (lambda: saved("WEBP", lossless=True) + FILM, 1, False),
    "webp, animated": (lambda: animated("WEBP", lossless=True), 1, False),
    "gif, animated": (lambda: animated("GIF"), 1, False),
    "gif, without its end": (lambda: animated("GIF")[:-1], 1, False),
    "bmp": (lambda: saved("BMP"), 1, False),
    "bmp, a wrong size of the file": (lambda: saved("BMP")[:2] + b"\xff\xff\xff\x0f" + saved("BMP")[6:], 1, False),
    "tiff": (lambda: saved("TIFF"), 1, False),
    "tiff, EXIF": (lambda: saved("TIFF", tiffinfo={274: 6}), 6, False),
    "tiff, compressed": (lambda: saved("TIFF", compression="tiff_lzw"), 1, False),
    "tiff, BigTIFF": (lambda: saved("TIFF", big_tiff=True), 1, False),
    "tiff, pages": (lambda: saved("TIFF", save_all=True, append_images=[picture().rotate(180)]), 1, False),
    "tiff, wild pointer to EXIF": (lambda: saved("TIFF", tiffinfo={34665: 1 << 30}), 1, False),
    "jpeg 2000": (lambda: saved("JPEG2000"), 1, False),
    "jpeg 2000, codestream": (lambda: saved("JPEG2000", no_jp2=True), 1, False),
    "jpeg 2000, bytes behind": (lambda: saved("JPEG2000") + FILM, 1, False),
    "avif": (lambda: saved("AVIF", quality=100, subsampling="4:4:4"), 1, False),
    "avif, turned": (lambda: saved("AVIF", quality=100, subsampling="4:4:4", exif=exif(6)), 6, False),
    "avif, EXIF that is none": (
        lambda: saved("AVIF", quality=100, subsampling="4:4:4", exif=exif(1)).replace(exif(1), b"no tiff".ljust(26)),
        1,
        False,
    ),
    "avif, a film behind": (lambda: saved("AVIF", quality=100, subsampling="4:4:4") + FILM, 1, False),
}


def _text(size: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * size, zip=True)
    return info
