"""Every fault of a sample gives exactly one typed row, and its neighbours are delivered."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.data.index.sample_check import hash_key
from pipelines.data.index.scan import ShardScan, scan_tar
from pipelines.data.tars.errors import FaultReason
from pipelines.data.tars.member_names import split_name
from tests.pipelines.data.tar_maker import (
    Entry,
    build_tar,
    data_of,
    header_of,
    link,
    photo,
    sample,
    samples,
    texts,
    zeroed,
)


def scan(data: bytes, **settings) -> ShardScan:
    settings = {"max_pixels": 10_000_000, "max_bytes": 1 << 20} | settings
    return scan_tar(io.BytesIO(data).read, **settings)


def keys(found: ShardScan) -> list[str]:
    return found.samples["key"].to_pylist()


def between(*entries) -> bytes:
    """The entries under test between two valid samples."""
    return build_tar([*sample(1), *entries, *sample(9)])


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims this size; the pixels are one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


JPEG, TEXTS = photo(5), texts(5)
CASES: dict[str, tuple[str, list[Entry | tarfile.TarInfo]]] = {
    "truncated JPEG": ("truncated_image", [("5.jpg", JPEG[: len(JPEG) // 2]), ("5.json", TEXTS)]),
    "JPEG cut in its header": ("truncated_image", [("5.jpg", JPEG[:40]), ("5.json", TEXTS)]),
    "truncated PNG": ("truncated_image", [("5.png", photo(5, form="PNG")[:900]), ("5.json", TEXTS)]),
    "truncated WebP": ("truncated_image", [("5.webp", photo(5, form="WEBP")[:300]), ("5.json", TEXTS)]),
    "truncated GIF": ("truncated_image", [("5.gif", photo(5, form="GIF")[:1200]), ("5.json", TEXTS)]),
    "truncated BMP": ("truncated_image", [("5.bmp", photo(5, form="BMP")[:1200]), ("5.json", TEXTS)]),
    "HTML as .jpg": ("undecodable_image", [("5.jpg", b"<html><body>404</body></html>"), ("5.json", TEXTS)]),
    "PPM as .jpg": ("undecodable_image", [("5.jpg", photo(5, form="PPM")), ("5.json", TEXTS)]),
    "spoiled PNG": ("undecodable_image", [("5.png", zeroed(photo(5, form="PNG"), 600)), ("5.json", TEXTS)]),
    "JPEG with a lost block": ("undecodable_image", [("5.jpg", zeroed(JPEG, 1024)), ("5.json", TEXTS)]),
    "JPEG with a lost end": (
        "truncated_image",
        [("5.jpg", zeroed(JPEG, len(JPEG) // 512 * 512 - 512)[: len(JPEG) // 512 * 512]), ("5.json", TEXTS)],
    ),
    "bomb": ("too_large_image", [("5.png", png_of_size(30_000, 30_000)), ("5.json", TEXTS)]),
    "above the limit": ("too_large_image", [("5.png", png_of_size(4_000, 2_501)), ("5.json", TEXTS)]),
    "large file": ("too_large_image", [("5.jpg", bytes((1 << 20) + 1)), ("5.json", TEXTS)]),
    "no image": ("missing_image", [("5.json", TEXTS)]),
    "image of another type": ("missing_image", [("5.svg", JPEG), ("5.json", TEXTS)]),
    "neither image nor text": (FaultReason.UNKNOWN_MEMBER, [("5.md5", b"7")]),
    "a dot too many": (FaultReason.UNKNOWN_MEMBER, [("5.v1.jpg", JPEG), ("5.v1.json", TEXTS)]),
    "NaN in JSON": (FaultReason.BAD_JSON, [("5.jpg", JPEG), ("5.json", b'{"caption": "a", "similarity": NaN}')]),
    "a long text": (FaultReason.TEXT_TOO_LONG, [("5.jpg", JPEG), ("5.txt", b"a" * 10_001)]),
    "many texts": (
        FaultReason.TOO_MANY_TEXTS,
        [("5.jpg", JPEG), ("5.json", b'{"captions":[%b"a"]}' % (b'"a",' * 1000))],
    ),
    "no text": (FaultReason.MISSING_TEXT, [("5.jpg", JPEG)]),
    "no caption in its texts": (FaultReason.MISSING_TEXT, [("5.jpg", JPEG), ("5.json", b'{"url": "x"}')]),
    "empty image": (FaultReason.EMPTY_MEMBER, [("5.jpg", b""), ("5.json", TEXTS)]),
    "empty text": (FaultReason.EMPTY_MEMBER, [("5.jpg", JPEG), ("5.txt", b"")]),
    "bad UTF-8 in JSON": (FaultReason.BAD_UTF8, [("5.jpg", JPEG), ("5.json", b'{"captions": ["\xff"]}')]),
    "zero in text": (FaultReason.BAD_UTF8, [("5.jpg", JPEG), ("5.txt", b"a\0b")]),
    "bad UTF-8 in text": (FaultReason.BAD_UTF8, [("5.jpg", JPEG), ("5.txt", b"caf\xe9")]),
    "bad JSON": (FaultReason.BAD_JSON, [("5.jpg", JPEG), ("5.json", b'{"captions": [')]),
    "bad schema": (FaultReason.BAD_SCHEMA, [("5.jpg", JPEG), ("5.json", b'{"captions": [7]}')]),
    "adjacent duplicate": (FaultReason.DUPLICATE_KEY, [*sample(5), *sample(5)]),
    "distant duplicate": (FaultReason.DUPLICATE_KEY, [*sample(5), *sample(6), *sample(5)]),
    "member twice": (FaultReason.DUPLICATE_KEY, [("5.jpg", JPEG), ("5.jpg", JPEG), ("5.json", TEXTS)]),
    "two images": (FaultReason.DUPLICATE_KEY, [("5.jpg", JPEG), ("5.png", JPEG), ("5.json", TEXTS)]),
    "split key": (FaultReason.SPLIT_KEY, [("5.jpg", JPEG), *sample(6), ("5.json", TEXTS)]),
    "split key, three parts": (
        FaultReason.SPLIT_KEY,
        [("5.jpg", JPEG), *sample(6), ("5.json", TEXTS), *sample(7), ("5.txt", b"x")],
    ),
    "split key, sound without": (
        FaultReason.SPLIT_KEY,
        [("5.jpg", JPEG), ("5.txt", b"x"), *sample(6), ("5.json", TEXTS)],
    ),
    "symbolic link": (FaultReason.UNSAFE_MEMBER, [link("5.jpg", "/etc/passwd"), ("5.json", TEXTS)]),
    "hard link": (FaultReason.UNSAFE_MEMBER, [link("5.jpg", "0001.jpg", tarfile.LNKTYPE), ("5.json", TEXTS)]),
    "link far from its sample": (FaultReason.UNSAFE_MEMBER, [link("5.jpg", "x"), *sample(6), ("5.json", TEXTS)]),
    "parent folder": (FaultReason.UNSAFE_MEMBER, [("../5.jpg", JPEG), ("../5.json", TEXTS)]),
    "absolute path": (FaultReason.UNSAFE_MEMBER, [("/5.jpg", JPEG), ("/5.json", TEXTS)]),
    "device": (FaultReason.UNSAFE_MEMBER, [link("5.jpg", "", tarfile.CHRTYPE), ("5.json", TEXTS)]),
    "stray link": (FaultReason.UNSAFE_MEMBER, [link("latest", "0001.jpg")]),
    "pickle": (FaultReason.UNSAFE_MEMBER, [("5.jpg", JPEG), ("5.json", TEXTS), ("5.pkl", b"cos\nsystem\n(S'x'\ntR.")]),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_one_row_and_neighbours_are_delivered(name):
    reason, entries = CASES[name]
    data = between(*entries)
    found = scan(data)
    assert [fault.reason for fault in found.faults] == [reason], found.faults
    fault = found.faults[0]
    whole = [1, 9, *(n for n in (5, 6, 7) if sample(n)[0] in entries)]
    assert sorted(keys(found)) == sorted(f"{n:04d}" for n in whole)
    assert fault.detail
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = [m for m in tar.getmembers() if m.offset_data == fault.offset]
    assert [m.name for m in member] == [fault.member]
    assert fault.key == (split_name(str(fault.member)) or [None])[0]


def test_member_name_that_is_not_utf8():
    data = build_tar([*sample(1), ("5x.jpg", JPEG), ("5x.json", TEXTS), *sample(9)])
    for name in (b"5x.jpg", b"5x.json"):
        at = header_of(data, name.decode())
        header = bytearray(data[at : at + 512])
        header[1] = 0xE9
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
        data = data[:at] + bytes(header) + data[at + 512 :]
    found = scan(data)
    assert [(f.reason, f.key) for f in found.faults] == [(FaultReason.BAD_UTF8, "5\\xe9")]
    assert keys(found) == ["0001", "0009"]


TAR = build_tar(samples(range(1, 6)))


@pytest.mark.parametrize(
    ("data", "lost"),
    {
        "at a header": (TAR[: header_of(TAR, "0003.jpg")], [3, 4, 5]),
        "at a header within a sample": (TAR[: header_of(TAR, "0003.json")], [3, 4, 5]),
        "inside a header": (TAR[: header_of(TAR, "0003.json") + 99], [3, 4, 5]),
        "inside data": (TAR[: data_of(TAR, "0003.jpg") + 99], [3, 4, 5]),
        "in the end mark": (TAR[: header_of(TAR, "0005.json") + 1024], []),
        "zeroed header of an image": (zeroed(TAR, header_of(TAR, "0003.jpg")), [3]),
        "zeroed header of a text": (zeroed(TAR, header_of(TAR, "0003.json")), [3]),
        "zeroed page": (zeroed(TAR, header_of(TAR, "0003.jpg"), 1024), [3]),
        "zeroed to the end": (zeroed(TAR, header_of(TAR, "0003.jpg"), len(TAR)), [3, 4, 5]),
        "no tar at all": (b"<html>404</html>" * 100, [1, 2, 3, 4, 5]),
        "nothing": (b"", [1, 2, 3, 4, 5]),
    }.values(),
)
def test_broken_tars_are_one_row_and_what_is_whole_is_delivered(data, lost):
    found = scan(data[: len(TAR)])
    assert [fault.reason for fault in found.faults] == [FaultReason.BROKEN_TAR], found.faults
    assert keys(found) == [f"{n:04d}" for n in range(1, 6) if n not in lost]


MIXED = build_tar(
    [
        entry
        for n, form in enumerate(("JPEG", "JPEG", "PNG", "WEBP"))
        for entry in ((f"{n}.{form.lower()}", photo(n, form=form)), (f"{n}.json", texts(n)), (f"{n}.txt", b"a caption"))
    ]
)


@pytest.mark.parametrize(
    "at", [at for at in range(header_of(MIXED, "1.jpeg"), len(MIXED), 512) if any(MIXED[at : at + 512])]
)
def test_every_zeroed_block_is_found_and_costs_one_sample(at):
    found = scan(zeroed(MIXED, at))
    assert len(found.faults) == 1
    assert len(keys(found)) == 3


def test_a_sample_cut_to_a_plausible_one_is_not_delivered():
    """Image and .txt make a sample, but not in a shard where samples have .json too."""
    entries = [entry for n in (1, 2) for entry in ((f"{n}.jpg", JPEG), (f"{n}.txt", b"c"), (f"{n}.json", b"{}"))]
    data = build_tar(entries)
    found = scan(data[: header_of(data, "2.json")])
    assert keys(found) == ["1"]
    assert [(f.reason, f.key) for f in found.faults] == [(FaultReason.BROKEN_TAR, "2")]


def test_rows_of_sound_samples():
    rotated = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    rotated.save(out, "JPEG", exif=exif)
    entries = [
        ("a/1.jpg", out.getvalue()),
        ("a/1.json", b'{"captions": ["x", "y"], "questions": [{"question": "q", "answer": null}]}'),
        ("2.png", photo(2, (10, 12), "PNG")),
        ("2.txt", b"one caption"),
        ("2.json", b'{"url": "http", "width": 10}'),
        ("2.cls", b"7"),
    ]
    data = build_tar(entries)
    found = scan(data)
    assert found.faults == []
    assert found.passed_over == {}
    first, second = found.samples.to_pylist()
    assert (first["key"], first["image.width"], first["image.height"], first["image.format"]) == ("a/1", 20, 30, "jpeg")
    assert (first["captions"], first["questions"]) == (2, 1)
    assert first["txt_offset"] is None
    assert (second["key"], second["image.width"], second["image.height"], second["image.format"]) == (
        "2",
        10,
        12,
        "png",
    )
    assert (second["captions"], second["questions"]) == (1, 0)
    for what, name in (("image.", "2.png"), ("txt_", "2.txt"), ("json_", "2.json")):
        span = slice(second[f"{what}offset"], second[f"{what}offset"] + second[f"{what}size"])
        assert data[span] == dict(entries)[name]
    assert data[second["cls_offset"] : second["cls_offset"] + second["cls_size"]] == b"7"
    assert [row["present"] for row in (first, second)] == ["captions,image,questions", "captions,class,image"]
    assert first["key_hash"] == first["split_hash"] == hash_key("a/1")


def test_a_group_of_the_json_decides_the_split_hash():
    groups = {"1": '"scene"', "2": "7", "3": "null", "4": '{"of": "metadata"}', "5": "true"}
    entries = [
        entry
        for key, group in groups.items()
        for entry in ((f"{key}.jpg", JPEG), (f"{key}.json", f'{{"captions": ["c"], "group": {group}}}'.encode()))
    ]
    rows = scan(build_tar([*entries, ("6.jpg", JPEG), ("6.txt", b'the "group"')])).samples.to_pylist()
    assert [row["split_hash"] for row in rows] == [hash_key(key) for key in ("scene", "7", "3", "4", "5", "6")]
    assert [row["key_hash"] for row in rows] == [hash_key(str(n)) for n in range(1, 7)]


def test_what_no_sample_is_made_of_is_counted_or_a_row():
    names = [
        "._0001.jpg", "__MACOSX/._0001.jpg", "__MACOSX/a.jpg", "a/.DS_Store", "Thumbs.db", "LICENSE", "__index__",
        "0001.seg.png", "0001.md5", "README.md", "frame.0001.jpg", "frame.0002.jpg", "frame.0002.txt", "README.md",
    ]  # fmt: skip
    found = scan(build_tar([*sample(1), *((name, JPEG) for name in names), *sample(9)]))
    assert keys(found) == ["0001", "0009"]
    assert [(fault.reason, fault.key, fault.member) for fault in found.faults] == [
        (FaultReason.UNKNOWN_MEMBER, key, member)
        for key, member in (
            ("README", "README.md"), ("frame", "frame.0001.jpg"), ("frame", "frame.0002.jpg"), ("README", "README.md"),
        )
    ]  # fmt: skip
    assert "the first dot of a base name ends the key ('frame')" in found.faults[1].detail
    assert found.passed_over == {
        "hidden": 5, "no extension": 2, ".seg.png": 1, ".md5": 1, ".md": 2, ".0001.jpg": 1, ".0002.jpg": 1,
        ".0002.txt": 1,
    }  # fmt: skip
    many = scan(build_tar([*sample(1), *((f"0001.{n}", b"x") for n in range(60))]))
    assert many.passed_over["other extensions"] == 10


@pytest.mark.parametrize("extension", ["jpe", "jfif", "JPG", "tif", "tiff", "avif", "jp2", "heic", "heif"])
def test_images_of_every_usual_extension_are_a_sample_or_a_row(extension):
    """By its bytes an image is decoded, by its extension it is found to be one."""
    found = scan(build_tar([(f"1.{extension}", JPEG), ("1.txt", b"a"), (f"2.{extension}", b"none"), ("2.txt", b"a")]))
    assert keys(found) == ["1"]
    assert [(fault.key, fault.reason) for fault in found.faults] == [("2", "undecodable_image")]


def test_limits_of_texts_are_those_that_are_given():
    data = build_tar([("1.jpg", JPEG), ("1.txt", b"four"), ("2.jpg", JPEG), ("2.json", b'{"captions": ["a", "b"]}')])
    assert scan(data, max_letters=4, max_texts=2).faults == []
    found = scan(data, max_letters=3, max_texts=1)
    assert [fault.reason for fault in found.faults] == [FaultReason.TEXT_TOO_LONG, FaultReason.TOO_MANY_TEXTS]


def test_texts_are_hashed():
    entries = [("1.jpg", JPEG), ("1.json", texts(1)), ("2.jpg", JPEG), ("2.json", texts(2)), ("2.txt", b"Two")]
    rows = scan(build_tar(entries)).samples.to_pylist()
    assert rows[0]["texts_hash"] == hashlib.sha256(texts(1)).digest()[:16]
    assert rows[1]["texts_hash"] == hashlib.sha256(texts(2) + b"Two").digest()[:16]
    assert rows[0]["text_hashes"] == [zlib.crc32(text) for text in (b"picture 1", b"is it 1?")]
    assert rows[1]["text_hashes"] == [zlib.crc32(text) for text in (b"picture 2", b"two", b"is it 2?")]


def test_header_check_finds_cut_images_without_decoding():
    data = build_tar(
        [
            *sample(1),
            ("2.jpg", JPEG[:-200]),
            ("2.txt", b"c"),
            ("3.png", photo(3, form="PNG")[:-50]),
            ("3.txt", b"c"),
            *sample(4),
        ]
    )
    found = scan(data, verify="header")
    assert [fault.reason for fault in found.faults] == ["truncated_image"] * 2
    assert keys(found) == ["0001", "0004"]


def test_longest_run_of_faults():
    bad = [(f"b{n}.jpg", b"x") for n in range(7)]
    found = scan(build_tar([*bad[:2], *sample(1), *bad[2:5], *sample(2), *bad[5:]]))
    assert found.worst_run == 3


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "RGBA", "1"])
def test_unusual_modes_are_sound(mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    out = io.BytesIO()
    Image.new(mode, (20, 20)).save(out, form)
    found = scan(between((f"5.{form.lower()}", out.getvalue()), ("5.json", TEXTS)))
    assert found.faults == []
    assert len(keys(found)) == 3


def test_animation_counts_as_its_first_frame():
    out = io.BytesIO()
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    found = scan(between(("5.gif", out.getvalue()), ("5.json", TEXTS)))
    assert [(row["image.width"], row["image.height"]) for row in found.samples.to_pylist()][1] == (20, 10)


def test_zeros_of_one_colour_are_no_lost_block():
    """Optimised code of a plain picture is mostly zeros, and sound."""
    out = io.BytesIO()
    Image.new("L", (3000, 3000), 128).save(out, "JPEG", optimize=True)
    assert bytes(4096) in out.getvalue()
    assert scan(between(("5.jpg", out.getvalue()), ("5.json", TEXTS))).faults == []


class TestTextsAlone:
    """A set of texts: images are neither needed nor read."""

    def scan(self, *entries: Entry | tarfile.TarInfo) -> ShardScan:
        return scan(build_tar(entries), inputs=["text"])

    def test_rows_have_texts_and_no_image(self):
        entries = [("1.json", texts(1)), ("2.txt", b"a caption"), ("3.jpg", b"no image at all"), ("3.json", texts(3))]
        found = self.scan(*entries)
        assert found.faults == []
        assert keys(found) == ["1", "2", "3"]
        assert found.samples["captions"].to_pylist() == [1, 1, 1]
        assert found.samples["questions"].to_pylist() == [1, 0, 1]
        data = build_tar(entries)
        assert found.samples["json_offset"].to_pylist() == [data_of(data, "1.json"), None, data_of(data, "3.json")]
        assert found.samples["txt_offset"].to_pylist() == [None, data_of(data, "2.txt"), None]
        assert not [name for name in found.samples.column_names if name.startswith("image.")]
        assert found.samples["present"].to_pylist() == ["captions,questions", "captions", "captions,questions"]
        assert found.passed_over == {".jpg": 1}

    @pytest.mark.parametrize(
        ("reason", "entries"),
        [
            (FaultReason.MISSING_TEXT, [("5.jpg", JPEG)]),
            (FaultReason.MISSING_TEXT, [("5.json", b'{"url": "x"}')]),
            (FaultReason.EMPTY_MEMBER, [("5.txt", b"")]),
            (FaultReason.BAD_UTF8, [("5.txt", b"caf\xe9")]),
            (FaultReason.BAD_JSON, [("5.json", b'{"captions": [')]),
            (FaultReason.DUPLICATE_KEY, [("5.json", texts(5)), ("6.json", texts(6)), ("5.json", texts(5))]),
            (FaultReason.DUPLICATE_KEY, [("5.json", texts(5)), ("5.json", texts(5))]),
            (FaultReason.UNSAFE_MEMBER, [("5.json", texts(5)), ("5.pkl", b"cos\nsystem\n(S'x'\ntR.")]),
        ],
    )
    def test_each_fault_is_one_row(self, reason, entries):
        found = self.scan(("1.json", texts(1)), *entries, ("9.json", texts(9)))
        assert [fault.reason for fault in found.faults] == [reason], found.faults
        assert {"1", "9"} <= set(keys(found))

    def test_a_sample_at_a_break_is_part_of_it_unless_it_is_whole(self):
        data = build_tar([(f"{n}.json", texts(n)) for n in (1, 2, 3)])
        found = scan(zeroed(data, header_of(data, "2.json")), inputs=["text"])
        assert [fault.reason for fault in found.faults] == [FaultReason.BROKEN_TAR]
        assert "1" in keys(found)


class TestImagesAlone:
    """A set of images: texts are neither needed nor read."""

    def test_rows_have_an_image_and_no_texts(self):
        entries = [("1.jpg", photo(1)), ("2.png", photo(2, form="PNG")), ("2.json", b"no JSON"), *sample(3)]
        found = scan(build_tar(entries), inputs=["image"])
        assert found.faults == []
        assert keys(found) == ["1", "2", "0003"]
        assert found.samples["captions"].to_pylist() == found.samples["questions"].to_pylist() == [0, 0, 0]
        assert found.samples["image.format"].to_pylist() == ["jpeg", "png", "jpeg"]
        for column in ("json_offset", "json_size", "txt_offset", "txt_size"):
            assert found.samples[column].null_count == 3

    @pytest.mark.parametrize(
        ("reason", "entries"),
        [
            ("missing_image", [("5.json", TEXTS)]),
            (FaultReason.EMPTY_MEMBER, [("5.jpg", b"")]),
            ("truncated_image", [("5.jpg", JPEG[: len(JPEG) // 2])]),
            (FaultReason.DUPLICATE_KEY, [("5.jpg", JPEG), ("6.jpg", photo(6)), ("5.jpg", JPEG)]),
        ],
    )
    def test_each_fault_is_one_row(self, reason, entries):
        found = scan(build_tar([("1.jpg", photo(1)), *entries, ("9.jpg", photo(9))]), inputs=["image"])
        assert [fault.reason for fault in found.faults] == [reason], found.faults
        assert {"1", "9"} <= set(keys(found))
