"""What comes in: content counts, not names or times; what is taken stays as it was."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from pipelines.data.index.build import build_index
from pipelines.data.index.config import IndexConfig
from pipelines.errors import DataError
from pipelines.retrain import incoming
from pipelines.retrain.incoming import copy_tars, count_inputs_shared_with_evaluation, find_new_tars
from pipelines.retrain.ledger import IncomingTar
from pipelines.storage.folder import FileStamp, StorageFolder
from tests.pipelines.data.tar_maker import samples, write_tar


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def found(folder: StorageFolder, consumed: dict[IncomingTar, str] | None = None, known: dict[str, str] | None = None):
    said: list[str] = []
    return find_new_tars(folder, consumed or {}, known or {}, said.append), said


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> StorageFolder:
    return StorageFolder(tmp_path if request.param == "local" else f"memory://incoming-{tmp_path.name}")


def test_whole_tars_are_found_with_their_content(folder: StorageFolder) -> None:
    folder.write("b.tar", b"two")
    folder.write("a.tar", b"one")
    folder.write(".c.tar", b"being written")
    folder.write("d.tar.part", b"being written")
    tars, said = found(folder)
    assert [(tar.name, tar.size, tar.sha256) for tar in tars] == [("a.tar", 3, sha(b"one")), ("b.tar", 3, sha(b"two"))]
    assert said == []


def test_content_that_was_seen_is_left_out_under_any_name(folder: StorageFolder) -> None:
    folder.write("again.tar", b"consumed")
    folder.write("old.tar", b"old")
    folder.write("x.tar", b"new")
    folder.write("y.tar", b"new")
    consumed = {IncomingTar("first.tar", 8, "", sha(b"consumed")): "20260101T0000Z"}
    tars, said = found(folder, consumed, {sha(b"old"): "train-000000.tar of /data"})
    assert [tar.name for tar in tars] == ["x.tar"]
    assert said == [
        "again.tar is left out: its content is that of cycle 20260101T0000Z",
        "old.tar is left out: its content is that of train-000000.tar of /data",
        "y.tar is left out: its content is that of x.tar",
    ]


def test_new_content_under_a_consumed_name_is_new(tmp_path: Path) -> None:
    folder = StorageFolder(tmp_path)
    folder.write("a.tar", b"one")
    consumed = dict.fromkeys(found(folder)[0], "20260101T0000Z")
    assert found(folder, consumed) == ([], [])
    os.utime(tmp_path / "a.tar", (1, 1))
    assert found(folder, consumed)[0] == []
    folder.write("a.tar", b"other")
    assert [tar.sha256 for tar in found(folder, consumed)[0]] == [sha(b"other")]


def test_what_is_consumed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StorageFolder(tmp_path)
    folder.write("a.tar", b"one")
    consumed = dict.fromkeys(found(folder)[0], "20260101T0000Z")

    def read(folder: StorageFolder, file: FileStamp) -> str:
        raise AssertionError(f"{file.name} is read")

    monkeypatch.setattr(incoming, "_file_sha256", read)
    assert found(folder, consumed) == ([], [])


def test_unreadable_tar_does_not_stop_the_others(tmp_path: Path) -> None:
    folder = StorageFolder(tmp_path)
    folder.write("a.tar", b"one")
    (tmp_path / "b.tar").symlink_to(tmp_path / "nowhere")
    tars, said = found(folder)
    assert [tar.name for tar in tars] == ["a.tar"]
    (line,) = said
    assert line.startswith("b.tar cannot be read and waits for a later window")


def test_taking_repeats_and_keeps_what_was_there(folder: StorageFolder) -> None:
    folder.write("a.tar", b"one")
    folder.write("b.tar", b"two")
    tars, _ = found(folder)
    for _ in range(2):
        copy_tars(folder, tars, "_taken/x")
        assert [file.name for file in folder.files("_taken/x")] == ["a.tar", "b.tar"]
    folder.remove("a.tar")
    folder.write("b.tar", b"three")
    copy_tars(folder, tars, "_taken/x")
    assert folder.read("_taken/x/a.tar") == b"one"
    assert folder.read("_taken/x/b.tar") == b"two"
    copy_tars(folder, tars[:1], "_taken/x")
    assert [file.name for file in folder.files("_taken/x")] == ["a.tar"]


def test_copied_tars_do_not_change_with_the_original(tmp_path: Path) -> None:
    folder = StorageFolder(tmp_path)
    folder.write("a.tar", b"one")
    (tmp_path / "a.tar").chmod(0o640)
    (tmp_path / "b.tar").symlink_to("a.tar")
    folder.write("c.tar", b"")
    tars = [IncomingTar(name, size, "", sha(data)) for name, size, data in (("a.tar", 3, b"one"), ("b.tar", 3, b"one"))]
    copy_tars(folder, [*tars, IncomingTar("c.tar", 0, "", sha(b""))], "_taken/x")
    with (tmp_path / "a.tar").open("r+b") as file:  # As cp and rsync --inplace do.
        file.write(b"two, and longer")
    assert [folder.read(f"_taken/x/{name}.tar") for name in "abc"] == [b"one", b"one", b""]
    taken = sorted((tmp_path / "_taken" / "x").iterdir())
    assert [path.name for path in taken] == ["a.tar", "b.tar", "c.tar"]
    assert [path.stat().st_mode & 0o777 for path in taken[:2]] == [0o640, 0o640]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EIO])
def test_a_disk_that_cannot_copy_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    folder = StorageFolder(tmp_path)
    folder.write("a.tar", b"one")

    def refuse(source: int, target: int, count: int) -> int:
        os.write(target, b"rest")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            folder.copy_file("a.tar", "taken/a.tar")
        assert list((tmp_path / "taken").iterdir()) == []
    else:
        folder.copy_file("a.tar", "taken/a.tar")
        assert folder.read("taken/a.tar") == b"one"


def test_a_tar_that_is_gone_is_named(folder: StorageFolder) -> None:
    folder.write("b.tar", b"two")
    with pytest.raises(DataError, match=r"a.tar is gone from .*; start again to go on without it"):
        copy_tars(folder, [IncomingTar("a.tar", 3, "", sha(b"one"))], "_taken/x")


def test_images_of_the_hold_out_are_counted(ray_local: None, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    write_tar(old, "train-000000.tar", samples([1, 2]))
    write_tar(old, "val-000000.tar", samples([3, 4]))
    write_tar(new, "train-000000.tar", samples([1, 3, 5]))
    write_tar(new, "val-000000.tar", samples([4]))
    judged, came = (build_index(str(folder), IndexConfig()) for folder in (old, new))
    assert count_inputs_shared_with_evaluation(came, judged, "val") == {"image": 1}
