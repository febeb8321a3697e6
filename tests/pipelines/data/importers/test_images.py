from __future__ import annotations

import io
import os
import socket
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from pipelines.data.importers._files import HIDDEN, LINKS_TO_READ, UNREADABLE, find_file, key_of_image, to_valid_key
from pipelines.data.importers._images import DEAD_LINKS, REPEATED, UNNAMED, SourceImages, guess_image_extension
from pipelines.data.tars.errors import FaultReason, SampleError
from pipelines.errors import DataError

CAFE = "café.jpg"
NFC, NFD = (unicodedata.normalize(form, CAFE) for form in ("NFC", "NFD"))


def _put(root: Path, *names: str, data: bytes) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def _reason(images: SourceImages, name: str) -> str:
    with pytest.raises(SampleError) as caught:
        images.read(name)
    return caught.value.reason


def test_all_kinds_are_images_and_the_rest_is_counted(tmp_path: Path, picture) -> None:
    kinds = {"a.jpg": "JPEG", "b.jfif": "JPEG", "c.JPE": "JPEG", "d.tif": "TIFF", "e.TIFF": "TIFF", "f.avif": "AVIF"}
    kinds |= {"g.jp2": "JPEG2000", "h.PNG": "PNG", "i.png.jpeg": "PNG", "none": "TIFF", "deep.er/none": "WEBP"}
    for name, kind in kinds.items():
        _put(tmp_path, name, data=picture(1, kind))
    _put(tmp_path, "a.txt", "b.TXT", "README", "odd.ex t", "deep/x.tar", "all.zip", data=b"text")
    _put(tmp_path, "._a.jpg", "__MACOSX/a.jpg", ".git/x.png", "Thumbs.db", "@eaDir/t.jpg", data=picture(2))
    images = SourceImages(tmp_path)
    assert sorted(images.names()) == sorted(kinds)
    read = {name: images.read(name) for name in images.names()}
    assert {name: extension for name, (_, extension) in read.items()} == {
        **{name: name.rpartition(".")[2].lower() for name in kinds if not name.endswith("none")},
        "none": "tif",
        "deep.er/none": "webp",
    }
    assert images.count_skipped_files() == {
        ".txt files": 2,
        ".tar files": 1,
        ".zip files": 1,
        "files without extension": 1,
        "files of odd extensions": 1,
        HIDDEN: 5,
    }
    assert images.count_skipped_files([tmp_path / "a.txt"])[".txt files"] == 1


def test_what_was_not_read_is_counted(tmp_path: Path, picture) -> None:
    _put(tmp_path, "a.png", "b.png", data=picture(1))
    images = SourceImages(tmp_path)
    images.read("a.png")
    assert images.count_skipped_files() == {UNNAMED: 1}


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path, picture) -> None:
    _put(tmp_path, "disk/deep/0.png", data=picture(0))
    _put(tmp_path, "data/z/1.png", "data/2.png", data=picture(1))
    root = tmp_path / "data"
    (root / "more").symlink_to(tmp_path / "disk")
    (root / "a").symlink_to("z")
    (root / "loop").symlink_to(root)
    (root / "z" / "up").symlink_to("..")
    (root / "again.png").symlink_to("2.png")
    (root / "gone").symlink_to("nowhere")
    (root / "self.png").symlink_to("self.png")
    images = SourceImages(root)
    assert set(images.names()) == {"2.png", "z/1.png", "more/deep/0.png", "again.png", "self.png"}
    assert images.count_skipped_files() == {LINKS_TO_READ: 3, DEAD_LINKS: 1, UNNAMED: 4}
    assert images.image_identity("again.png") == images.image_identity("2.png") == str(root / "2.png")
    # A name through the way that was not walked, a loop, and the absolute name behind a link.
    for name in ("a/1.png", "loop/z/1.png", "z/up/z/1.png", f"{root}/a/1.png"):
        assert images.image_identity(name) == images.image_identity("z/1.png")
    assert _reason(images, "self.png") == "missing_image"
    (tmp_path / "link").symlink_to(root)
    assert SourceImages(tmp_path / "link").image_identity(f"{root}/2.png") == str(root / "2.png")


def test_what_is_no_image_is_never_read_into_one(tmp_path: Path, picture) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0")
    root = tmp_path / "img"
    _put(root, "ok.png", data=picture(0))
    (root / "secret.png").symlink_to(secret)
    (root / "text.png").write_text("root:x:0:0")
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "empty.png").write_bytes(b"")
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe")
    os.mkfifo(root / "pipe.tar")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket.png"))
    images = SourceImages(root)
    assert images.read("ok.png") == (picture(0), "png")
    assert images.read("empty.png") == (b"", "png")  # The writer of tars has a reason of its own for it.
    assert {
        name: _reason(images, f"{name}.png") for name in ("secret", "text", "zero", "folder", "pipe", "socket")
    } == {
        "secret": "undecodable_image",
        "text": "undecodable_image",
        "zero": FaultReason.UNSAFE_MEMBER,
        "folder": "missing_image",
        "pipe": FaultReason.UNSAFE_MEMBER,
        "socket": "missing_image",
    }
    with pytest.raises(SampleError) as caught:
        images.read("secret.png")
    assert "root" not in caught.value.detail.replace(str(root), "")
    assert {"files without extension", ".tar files"} <= images.count_skipped_files().keys()


def test_a_folder_that_cannot_be_read_is_counted(tmp_path: Path, picture, monkeypatch) -> None:
    _put(tmp_path, "a.png", "closed/b.png", data=picture(0))
    scandir = os.scandir

    def refuse(path: Path) -> object:  # As root, who may read all folders, meets it on a network disk.
        if os.path.basename(path) == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    closed = "closed"
    monkeypatch.setattr(os, "scandir", refuse)
    assert SourceImages(tmp_path).count_skipped_files() == {UNREADABLE: 1, UNNAMED: 1}
    closed = tmp_path.name
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\); permit it or name another"):
        SourceImages(tmp_path)


@pytest.mark.parametrize("in_tar", [False, True])
def test_spellings_of_one_name(tmp_path: Path, picture, write_tar, in_tar: bool) -> None:
    names = [f"img/{NFD}", "img/B.JPG", "x/0.jpg", "y/0.jpg"]
    files = {name: picture(number, "JPEG") for number, name in enumerate(names)}
    if in_tar:
        root = write_tar(tmp_path / "photos.tar", files)
    else:
        root = tmp_path
        for name, data in files.items():
            _put(root, name, data=data)
    images = SourceImages(root)
    for name in (NFC, NFD, f"img/{NFC}", f"./img//{NFC}", f"img\\{NFC}", f"x/../img/{NFC}"):
        assert images.read(name) == (files[names[0]], "jpg")
        assert images.image_identity(name) == images.image_identity(names[0])
    assert images.read("b.jpg")[0] == files["img/B.JPG"]
    assert _reason(images, "0.jpg") == "missing_image"
    assert _reason(images, "..\\0.jpg") is FaultReason.UNSAFE_MEMBER
    assert _reason(images, "/etc/0.jpg") is FaultReason.UNSAFE_MEMBER
    assert _reason(images, "x/../../0.jpg") is FaultReason.UNSAFE_MEMBER


def test_the_exact_name_comes_before_another_case(tmp_path: Path, picture) -> None:
    _put(tmp_path, "a.png", data=picture(1))
    _put(tmp_path, "A.png", data=picture(2))
    images = SourceImages(tmp_path)
    assert (images.read("a.png")[0], images.read("A.png")[0]) == (picture(1), picture(2))
    assert _reason(images, "a.PNG") == "missing_image"


def test_a_hidden_image_is_found_where_it_is_named(tmp_path: Path, picture) -> None:
    _put(tmp_path, ".cache/0.png", data=picture(0))
    images = SourceImages(tmp_path)
    assert images.names() == []
    assert images.read(".cache/0.png") == (picture(0), "png")


def test_members_of_a_tar(tmp_path: Path, picture) -> None:
    def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, len(data)
        tar.addfile(member, io.BytesIO(data))

    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        add("a/0.png", picture(0))
        add("./1.png", picture(9))
        add("hard.png", kind=tarfile.LNKTYPE, link="a/0.png")
        add("a/soft.png", kind=tarfile.SYMTYPE, link="../a/0.png")
        add("out.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add("up.png", kind=tarfile.SYMTYPE, link="../../etc/passwd")
        add("self.png", kind=tarfile.SYMTYPE, link="self.png")
        add("pipe.png", kind=tarfile.FIFOTYPE)
        add("text.png", b"text")
        add("a/plain", picture(2))
        add("a/._0.png", b"\0\5\x16\7")
        add("__MACOSX/x.png", picture(3))
        add("notes.txt", b"x")
        add("1.png", picture(1))  # The later one is what unpacking would leave.
    images = SourceImages(tmp_path)
    names = ["a/0.png", "1.png", "hard.png", "a/soft.png", "out.png", "up.png", "self.png", "pipe.png", "text.png"]
    assert images.names() == [*names, "a/plain"]
    assert images.read("1.png") == (picture(1), "png")
    assert images.read("a/plain") == (picture(2), "png")
    assert {images.image_identity(name) for name in ("a/0.png", "hard.png", "a/soft.png")} == {
        str(tmp_path / "t.tar/a/0.png")
    }
    assert images.read("a/soft.png") == images.read("hard.png") == (picture(0), "png")
    unsafe = {name: _reason(images, f"{name}.png") for name in ("out", "up", "self", "pipe")}
    assert set(unsafe.values()) == {FaultReason.UNSAFE_MEMBER}
    assert _reason(images, "text.png") == "undecodable_image"
    assert images.count_skipped_files() == Counter({HIDDEN: 2, ".txt files": 1, REPEATED: 1})


def test_a_file_comes_before_a_member_of_its_name(tmp_path: Path, picture, write_tar) -> None:
    _put(tmp_path, "0.png", data=picture(0))
    write_tar(tmp_path / "t.tar", {"0.png": picture(1)})
    images = SourceImages(tmp_path)
    assert images.read("0.png")[0] == picture(0)
    assert images.count_skipped_files() == {REPEATED: 1}


def test_kinds_by_first_bytes(picture) -> None:
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "AVIF": "avif"}
    assert {kind: guess_image_extension(picture(1, kind)) for kind in [*kinds, "JPEG2000"]} == kinds | {
        "JPEG2000": "jp2"
    }
    assert guess_image_extension(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic") in ("heic", "heif")
    for other in (
        b"",
        b"text",
        b"root:x:0:0",
        b"%PDF-1.7",
        b"PK\3\4",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp41isom",
        bytes(64),
    ):
        assert guess_image_extension(other) is None


def test_a_sparse_file_is_not_read_into_memory(tmp_path: Path, picture, write_tar) -> None:
    _put(tmp_path, "x.png", "y.png", data=picture(0))
    os.truncate(tmp_path / "x.png", 1 << 40)
    images = SourceImages(tmp_path)
    assert _reason(images, "x.png") == "too_large_image"
    assert images.read("y.png") == (picture(0), "png")


def test_a_tar_that_ends_inside_an_image(tmp_path: Path, picture, write_tar) -> None:
    tar = write_tar(tmp_path / "t.tar", {"x.png": picture(0)})
    images = SourceImages(tar)
    os.truncate(tar, 512 + 40)
    assert _reason(images, "x.png") is FaultReason.BROKEN_TAR


def test_usual_names_are_found_behind_links(tmp_path: Path) -> None:
    _put(tmp_path, "disk/captions.txt", data=b"x")
    _put(tmp_path, "data/._captions.txt", "data/.old/captions.txt", data=b"y")
    os.mkfifo(tmp_path / "data" / "captions.csv")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "data" / "up").symlink_to("..")
    found = find_file(tmp_path / "data", ["captions.csv", "*captions.txt"], "", "source.captions")
    assert found is not None
    assert found.samefile(tmp_path / "disk/captions.txt")


def test_keys() -> None:
    assert key_of_image("a.b/x") == to_valid_key("a.b/x")
    assert key_of_image("a/x.1.PNG") == to_valid_key("a/x.1")
    odd = [to_valid_key(name) for name in ("a\udce9", "a\udce8", "a\ud800")]
    assert len(set(odd)) == 3
    assert all(key.encode().startswith(b"a__") for key in odd)
