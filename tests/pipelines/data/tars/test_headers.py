"""Reading tar headers: what tarfile finds is found, and so is what tarfile overlooks."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.tars.headers import MemberKind, TarCorruption, TarMember, read_tar
from tests.pipelines.data.tar_maker import build_tar, data_of, header_of, link, samples, zeroed

GNU_TAR = shutil.which("tar") and "GNU" in subprocess.run(["tar", "--version"], capture_output=True, text=True).stdout
needs_gnu_tar = pytest.mark.skipif(not GNU_TAR, reason="there is no GNU tar on this machine")
LONG = "folder/" + "n" * 180 + "/é" + "x" * 120 + ".jpg"


def read(data: bytes, step: int | None = None) -> tuple[list[TarMember], list[TarCorruption]]:
    stream = io.BytesIO(data)
    items = list(read_tar(lambda n: stream.read(min(n, step) if step else n), lambda name, size: True))
    return [i for i in items if isinstance(i, TarMember)], [i for i in items if isinstance(i, TarCorruption)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("step", [None, 1000])
def test_members_agree_with_tarfile(form, step):
    entries = [("a/1.jpg", b"x" * 700), ("a/1.json", b""), ("é.txt", b"y" * 512), ("a/" + "m" * 90 + "/2.jpg", b"z")]
    if form != tarfile.USTAR_FORMAT:
        entries.insert(1, (LONG, b"w" * 1025))
    data = build_tar(entries, form)
    members, breaks = read(data, step)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert [(m.name, m.offset, m.size) for m in members] == expected
    assert [m.data for m in members] == [content for _, content in entries]
    assert breaks == []


@needs_gnu_tar
def test_gnu_tars_own_output(tmp_path: Path):
    (tmp_path / "in" / ("d" * 90)).mkdir(parents=True)
    (tmp_path / "in" / ("d" * 90) / ("f" * 90 + ".jpg")).write_bytes(b"1" * 600)
    (tmp_path / "in" / "b.json").write_bytes(b"{}")
    for form in ("v7", "ustar", "gnu", "pax"):
        name = "b.json" if form == "v7" else "."
        tar = ["tar", "-C", str(tmp_path / "in"), f"--format={form}", "-cf", str(tmp_path / "out.tar"), name]
        subprocess.run(tar, check=True)
        members, breaks = read((tmp_path / "out.tar").read_bytes())
        assert breaks == [], form
        found = {m.name.removeprefix("./"): m.data for m in members if m.kind is MemberKind.FILE}
        assert found["b.json"] == b"{}"
        assert form == "v7" or found["d" * 90 + "/" + "f" * 90 + ".jpg"] == b"1" * 600


def test_size_from_pax_header_wins():
    """Writers put sizes that an octal field cannot hold into a PAX record, and anything into the field."""
    record = b"size=5\n"
    payload = b"%d %s" % (len(record) + 2, record)
    extended = tarfile.TarInfo("PaxHeaders/a")
    extended.type, extended.size = b"x", len(payload)
    member = tarfile.TarInfo("a.txt")
    data = extended.tobuf() + payload.ljust(512, b"\0") + member.tobuf() + b"hello".ljust(512, b"\0") + bytes(1024)
    members, breaks = read(data)
    assert [(m.size, m.data) for m in members] == [(5, b"hello")]
    assert breaks == []


def test_base_256_size():
    info = tarfile.TarInfo("big.jpg")
    info.size = 9 << 30
    stream = io.BytesIO(info.tobuf(tarfile.GNU_FORMAT))
    items = list(read_tar(stream.read))
    assert isinstance(items[0], TarCorruption)
    assert f"0 of {9 << 30} bytes of 'big.jpg'" in items[0].detail


def test_links_and_devices_have_no_data():
    links = [link("l.jpg", "/etc/passwd"), link("h.jpg", "0001.jpg", tarfile.LNKTYPE), link("p", "", tarfile.FIFOTYPE)]
    links[1].size = 4096  # some writers give a hard link the size of its target
    data = build_tar([*samples([1]), *links, *samples([2])])
    members, breaks = read(data)
    assert [m.kind for m in members] == [MemberKind.FILE] * 2 + [
        MemberKind.LINK,
        MemberKind.LINK,
        MemberKind.SPECIAL,
    ] + [MemberKind.FILE] * 2
    assert breaks == []


TAR = build_tar(samples(range(1, 6)))


@pytest.mark.parametrize(
    ("cut", "where", "complete"),
    [
        (header_of(TAR, "0003.jpg"), "without its end mark", 4),
        (header_of(TAR, "0003.jpg") + 100, "inside a header", 4),
        (data_of(TAR, "0003.jpg") + 100, "bytes of '0003.jpg'", 4),
        (data_of(TAR, "0003.json") + 500, "padding after '0003.json'", 6),
        (header_of(TAR, "0005.json") + 1024 + 512, "end mark is cut", 10),
        (0, "without its end mark", 0),
    ],
)
def test_cuts_are_found(cut, where, complete):
    members, breaks = read(TAR[:cut])
    assert len(members) == complete
    assert len(breaks) == 1
    assert where in breaks[0].detail


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(TAR) - 10240 - 512))
def test_every_cut_is_found(cut):
    """tarfile takes each cut at a header for a complete archive."""
    assert read(TAR[:cut])[1]


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_zeroed_blocks_are_found_and_passed(blocks):
    at = header_of(TAR, "0003.jpg")
    members, breaks = read(zeroed(TAR, at, blocks * 512))
    assert [b.offset for b in breaks] == [at]
    assert [m.name for m in members if m.name != "0003.json"] == [
        name for n in (1, 2, 4, 5) for name in (f"{n:04d}.jpg", f"{n:04d}.json")
    ]
    with tarfile.open(fileobj=io.BytesIO(zeroed(TAR, at, 1024))) as tar:
        assert len(tar.getmembers()) == 4, "tarfile stops there without an error"


def test_zeroed_tail_is_no_end():
    at = header_of(TAR, "0002.jpg")
    members, breaks = read(zeroed(TAR, at, len(TAR) - at))
    assert [b.offset for b in breaks] == [at]
    assert len(members) == 2


@needs_gnu_tar
@pytest.mark.parametrize("blocking", [1, 2, 20, 64])
def test_padding_of_any_record_size_is_an_end(tmp_path, blocking):
    (tmp_path / "a.txt").write_bytes(b"1" * 3000)
    command = ["tar", "-C", str(tmp_path), "-b", str(blocking), "-cf", str(tmp_path / "out.tar"), "a.txt"]
    subprocess.run(command, check=True)
    assert read((tmp_path / "out.tar").read_bytes())[1] == []


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 511).filter(lambda at: at not in range(500, 512)), st.integers(1, 255))
def test_flipped_byte_in_a_header_is_found(at, flip):
    """Except in the checksum's own padding and where the flip leaves the sum as it was, which one flip never does."""
    offset = header_of(TAR, "0003.jpg")
    spoiled = bytearray(TAR)
    spoiled[offset + at] ^= flip
    members, breaks = read(bytes(spoiled))
    if breaks:
        assert [b.offset for b in breaks] == [offset]
        assert {m.name for m in members} >= {"0002.json", "0004.jpg", "0005.json"}
    else:
        assert 148 <= at < 156
        assert len(members) == 10


def test_damaged_extended_headers_are_found():
    data = build_tar([("a.txt", b"1"), (LONG, b"2"), ("c.txt", b"3")], tarfile.PAX_FORMAT)
    at = header_of(data, LONG)
    members, breaks = read(data[: at + 512] + b"garbage" + data[at + 519 :])
    assert members[0].name == "a.txt"
    assert members[-1].name == "c.txt"
    assert len(breaks) == 1
    assert "PAX" in breaks[0].detail


def test_gzip_is_named():
    import gzip

    _, breaks = read(gzip.compress(TAR))
    assert "gzip" in breaks[0].detail


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=4096))
def test_any_bytes_end_in_a_break_or_an_end(data):
    _, breaks = read(data)
    assert breaks or data.count(0) == len(data)
