"""Index, decoder and GPU decoder agree on every file: its size, its turn, its pixels, and whether it is whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vlmodel import image_files
from tests.vlmodel.image_files import FILES, HEIGHT, WIDTH, picture
from vlmodel.images.decoders.cpu import decode_image
from vlmodel.images.decoders.gpu import decode_jpegs_on_gpu
from vlmodel.images.errors import ImageError
from vlmodel.images.header import WITHOUT_END, find_image_end, read_image_header, remove_image_metadata
from vlmodel.images.pillow import image_extension
from vlmodel.images.resize import ImageResizing, Resize
from vlmodel.media.base import CheckLimits, Fact, MediumError, Verify
from vlmodel.media.image import MEDIUM

SIDE, LIMIT = 32, 1_000_000


def check_image(data: bytes, max_pixels: int, verify: Verify = "decode") -> dict[str, Fact]:
    return MEDIUM.check_file(data, CheckLimits(max_pixels=max_pixels, verify=verify))


UPRIGHT = {
    1: picture,
    3: lambda: picture().transpose(Image.Transpose.ROTATE_180),
    5: lambda: picture().transpose(Image.Transpose.TRANSPOSE),
    6: lambda: picture().transpose(Image.Transpose.ROTATE_270),
    8: lambda: picture().transpose(Image.Transpose.ROTATE_90),
}
# Colours in these are coarser, or are converted.
COARSE = ("jpeg, CMYK", "png, interlaced by palette", "gif, animated", "gif, without its end")


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def unlike(got: np.ndarray, orientation: int) -> float:
    expected = np.asarray(UPRIGHT[orientation]().resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return float(np.abs(got.astype(float) - expected).mean())


def test_the_decoder(file: str) -> None:
    make, orientation, _ = FILES[file]
    assert unlike(decode_image(make(), ImageResizing((SIDE, SIDE)), LIMIT), orientation) < (12 if file in COARSE else 3)


@pytest.mark.parametrize("verify", ["decode", "header"])
def test_the_index(file: str, verify: Verify) -> None:
    make, orientation, _ = FILES[file]
    facts = check_image(make(), LIMIT, verify)
    assert (facts["width"], facts["height"]) == ((HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT))
    assert facts["format"] == {"jpeg 2000": "jpeg2000"}.get(file.partition(",")[0], file.partition(",")[0])


def test_the_gpu_decoder(file: str) -> None:
    make, orientation, taken = FILES[file]
    out = np.full((1, SIDE, SIDE, 3), 7, np.uint8)
    assert decode_jpegs_on_gpu(
        [make()], ImageResizing((SIDE, SIDE)), LIMIT, torch.device("cpu"), list(out)
    ).tolist() == [taken]
    if taken:
        assert unlike(out[0], orientation) < 3
    else:
        assert (out == 7).all()


def test_what_is_cut_is_refused_by_all(file: str) -> None:
    """In the middle of the pixels, wherever metadata are."""
    make, _, _ = FILES[file]
    data = make()
    header = read_image_header(data)
    assert header is not None
    end = find_image_end(data, header)
    assert end is not None
    # The longest stretch without metadata.
    edges = [0, *(edge for part in header.metadata if part[0] < end for edge in part), end]
    length, start = max((behind - first, first) for first, behind in zip(edges[::2], edges[1::2], strict=True))
    cut = data[: start + length * 2 // 3]
    for verify in ("decode", "header"):
        with pytest.raises(MediumError) as refused:
            check_image(cut, LIMIT, verify)  # type: ignore[arg-type]
        assert refused.value.reason in ("truncated", "undecodable")
    with pytest.raises(ImageError):
        decode_image(cut, ImageResizing((SIDE, SIDE)), LIMIT)
    out = list(np.full((1, SIDE, SIDE, 3), 7, np.uint8))
    assert not decode_jpegs_on_gpu([cut], ImageResizing((SIDE, SIDE)), LIMIT, torch.device("cpu"), out).any()


def test_without_metadata_the_image_is_the_same(file: str) -> None:
    data = FILES[file][0]()
    header = read_image_header(data)
    assert header is not None
    alone = remove_image_metadata(data, header)
    again = read_image_header(alone)
    assert again is not None
    assert (again.format, again.size) == (header.format, header.size)
    assert again.orientation == 1
    assert not again.metadata


def test_extensions() -> None:
    usual = {"jpeg": "jpg", "tiff": "tif", "jpeg 2000": "jp2"}
    for file, (make, *_) in FILES.items():
        form = file.partition(",")[0]
        assert image_extension(make()) == usual.get(form, form)
    assert image_extension(b"<html>") is None


def test_arithmetic_code_is_left_to_the_cpu() -> None:
    """One such file would fail all of a call of nvJPEG's."""
    data = image_files.saved().replace(b"\xff\xc0", b"\xff\xc9", 1)
    header = read_image_header(data)
    assert header is not None
    assert header.frame == 0xC9
    out = list(np.full((1, SIDE, SIDE, 3), 7, np.uint8))
    assert not decode_jpegs_on_gpu([data], ImageResizing((SIDE, SIDE)), LIMIT, torch.device("cpu"), out).any()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("truecolour", lambda: image_files.saved("PNG", two_colours(), transparency=(255, 0, 0))),
        ("grey", lambda: image_files.saved("PNG", two_colours().convert("L"), transparency=76)),
        ("one bit", lambda: packed_png(1, (0, 1), transparent=0)),
        ("two bits", lambda: packed_png(2, (1, 2), transparent=1)),
        ("four bits", lambda: packed_png(4, (3, 9), transparent=3)),
        ("16 bits", lambda: packed_png(16, (1000, 30000), transparent=1000)),
        ("truecolour of 16 bits", lambda: truecolour_16()),
        ("palette", lambda: image_files.saved("PNG", two_colours().quantize(2), transparency=palette_entry())),
        ("alpha", lambda: image_files.saved("PNG", with_alpha())),
        ("webp", lambda: image_files.saved("WEBP", with_alpha(), lossless=True, exact=True)),
        ("gif", lambda: image_files.saved("GIF", two_colours().quantize(2), transparency=palette_entry())),
    ],
)
def test_what_is_transparent_becomes_white(name: str, make: object) -> None:
    pixels = decode_image(make(), ImageResizing((16, 16)), LIMIT)  # type: ignore[operator]
    assert pixels[0, 0].tolist() == [255, 255, 255], name
    assert name == "one bit" or pixels[15, 15].tolist() != [255, 255, 255], name


def test_a_colour_beside_the_transparent_one_stays() -> None:
    image = Image.new("RGB", (16, 16), (254, 0, 0))
    data = image_files.saved("PNG", image, transparency=(255, 0, 0))
    assert decode_image(data, ImageResizing((16, 16)), LIMIT)[0, 0].tolist() == [254, 0, 0]


def test_a_lost_block_counts_where_pixels_are() -> None:
    """The data of a member begins on a block's border, so a lost block is 512 zeros at a multiple of 512."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 96, 3), np.uint8))
    profile = rng.integers(1, 256, 5000, np.uint8).tobytes()
    data = image_files.segment(image_files.saved(image=noise), 0xE2, b"ICC_PROFILE\0\1\1" + profile)
    zeros = lambda at: data[:at] + bytes(512) + data[at + 512 :]  # noqa: E731
    assert check_image(zeros(1024), LIMIT)["width"] == 96
    with pytest.raises(MediumError, match="block of zeros at byte 8192"):
        check_image(zeros(8192), LIMIT)
    assert check_image(data + bytes(-len(data) % 512) + bytes(1024) + b"film", LIMIT)["width"] == 96


def test_values_without_a_range_are_refused_by_all() -> None:
    for mode in ("F", "I"):
        data = image_files.saved("TIFF", Image.new(mode, (8, 8)))
        with pytest.raises(MediumError, match="8 or 16 bits") as refused:
            check_image(data, LIMIT)
        assert refused.value.reason == "undecodable"
        with pytest.raises(ImageError, match="8 or 16 bits"):
            decode_image(data, ImageResizing((SIDE, SIDE)), LIMIT)


def test_bombs_of_other_kinds_are_refused_by_their_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    jp2 = image_files.saved("JPEG2000")
    at = jp2.index(b"\xff\x4f\xff\x51") + 8
    # The box says 96 x 64, the codestream, which is what is decoded, another size.
    lying = jp2[:at] + (60_000).to_bytes(4, "big") * 2 + jp2[at + 8 :]
    tiled = image_files.tiff_of(
        {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 8, 325: 9}
    )
    wide = image_files.saved("TIFF", Image.new("1", (4000, 4000)))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("was decoded"))
    for data in (lying, tiled, wide):
        with pytest.raises(ImageError, match="too many pixels"):
            decode_image(data, ImageResizing((SIDE, SIDE)), LIMIT)
        with pytest.raises(MediumError) as refused:
            check_image(data, LIMIT)
        assert refused.value.reason == "too_large"


def test_heic_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = (24).to_bytes(4, "big") + b"ftypheic\0\0\0\0mif1heic" + bytes(100)
    with pytest.raises(ImageError, match="pillow-heif"):
        decode_image(data, ImageResizing((SIDE, SIDE)), LIMIT)
    with pytest.raises(MediumError, match="pillow-heif"):
        check_image(data, LIMIT)
    assert image_extension(data) == "heic"


def test_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the package pillow-heif")
    pillow_heif.register_heif_opener()
    data = image_files.saved("HEIF", quality=95)
    assert unlike(decode_image(data, ImageResizing((SIDE, SIDE)), LIMIT), 1) < 5
    assert tuple(check_image(data, LIMIT).values()) == ("heif", WIDTH, HEIGHT)
    for verify in ("decode", "header"):
        with pytest.raises(MediumError):
            check_image(data[: len(data) * 2 // 3], LIMIT, verify)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"]
)
def test_no_header_is_too_short(data: bytes) -> None:
    header = read_image_header(data)
    assert header is None or header.format in ("webp", *WITHOUT_END) or find_image_end(data, header) is None


def test_random_bytes_behind_a_signature_raise_nothing() -> None:
    rng = np.random.default_rng(0)
    for make, *_ in FILES.values():
        data = bytearray(make()[:4000])
        for _ in range(20):
            at = rng.integers(8, len(data), 12)
            for place in at:
                data[place] = rng.integers(0, 256)
            spoiled = bytes(data)
            if (header := read_image_header(spoiled)) is not None:
                find_image_end(spoiled, header)
                remove_image_metadata(spoiled, header)


def upright_of(image: Image.Image, orientation: int) -> Image.Image:
    """What a reader shows of the stored ``image``."""
    transpose = Image.Transpose
    turns = {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_90,
    }
    return image if orientation == 1 else image.transpose(turns[orientation])


def two_colours() -> Image.Image:
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    image.paste((0, 0, 255), (8, 8, 16, 16))
    return image


def with_alpha() -> Image.Image:
    image = two_colours().convert("RGBA")
    image.paste((255, 0, 0, 0), (0, 0, 8, 8))
    return image


def palette_entry() -> int:
    entry = two_colours().quantize(2).getpixel((0, 0))
    assert isinstance(entry, int)
    return entry


def packed_png(depth: int, values: tuple[int, int], transparent: int) -> bytes:
    """Greys of 16 x 16: the first value in the upper half."""
    rows = b""
    for row in range(16):
        value = values[row >= 8]
        bits = "".join(f"{value:0{depth}b}" for _ in range(16))
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    return image_files.raw_png(depth, 0, rows, 16, 16, image_files.chunk(b"tRNS", transparent.to_bytes(2, "big")))


def truecolour_16() -> bytes:
    first, second = (0x1234, 0x5678, 0x9ABC), (0xFF00, 0, 0)
    rows = b""
    for row in range(16):
        rows += b"\0" + b"".join(v.to_bytes(2, "big") for v in (first if row < 8 else second)) * 16
    tRNS = b"".join(v.to_bytes(2, "big") for v in first)
    return image_files.raw_png(16, 2, rows, 16, 16, image_files.chunk(b"tRNS", tRNS))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("width", [95, 96])
def test_every_orientation(orientation: int, resize: Resize, width: int) -> None:
    """By the fast decoder, by Pillow, and at a part of its size: all as if the file had been stored upright."""
    image = picture().resize((width, HEIGHT))
    data = image_files.segment(image_files.saved(image=image), 0xE1, b"Exif\0\0" + image_files.exif(orientation))
    upright = upright_of(image, orientation)
    expected = decode_image(image_files.saved(image=upright), ImageResizing((SIDE, SIDE), resize), LIMIT).astype(int)
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    assert decode_image(data, ImageResizing((SIDE, SIDE), resize), LIMIT, out) is out
    assert np.abs(out - expected).max() <= 6
    png = image_files.saved("PNG", image, exif=image_files.exif(orientation))
    assert np.abs(decode_image(png, ImageResizing((SIDE, SIDE), resize), LIMIT) - expected).max() <= 6
    wide = ImageResizing((SIDE // 2, 2 * SIDE), resize)
    shown = decode_image(image_files.saved(image=upright), wide, LIMIT).astype(int)
    assert np.abs(decode_image(data, wide, LIMIT) - shown).max() <= 6
    if resize == "squash":
        small = decode_image(data, ImageResizing((4, 4), resize), LIMIT).astype(int)
        assert (
            np.abs(small - decode_image(image_files.saved(image=upright), ImageResizing((4, 4), resize), LIMIT)).max()
            <= 6
        )
    facts = check_image(data, LIMIT)
    assert (facts["width"], facts["height"]) == upright.size
