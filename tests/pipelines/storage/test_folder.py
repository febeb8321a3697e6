"""Trying again: what may pass is, what stays is not, and what is left at the end is an OSError."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from pipelines.storage.folder import StorageFolder
from pipelines.storage.retries import ATTEMPTS, call_with_retries


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.storage.retries.FIRST_DELAY_S", 0.0)


@pytest.mark.parametrize(
    ("raised", "expected", "attempts"),
    [
        (OSError("reset"), "reset", ATTEMPTS),
        (TimeoutError("slow"), "slow", ATTEMPTS),
        # Of aiohttp's errors some are no OSError.
        (aiohttp.ServerDisconnectedError("gone"), "ServerDisconnectedError: gone", ATTEMPTS),
        (aiohttp.ClientPayloadError("cut"), "ClientPayloadError: cut", ATTEMPTS),
        (FileNotFoundError("no such file"), "no such file", 1),
        (PermissionError("not yours"), "not yours", 1),
    ],
)
def test_errors_of_input_and_output(raised: Exception, expected: str, attempts: int) -> None:
    made = []

    def operation() -> None:
        made.append(1)
        raise raised

    with pytest.raises(OSError, match=expected):
        call_with_retries(operation)
    assert len(made) == attempts


def test_other_errors_pass_at_once() -> None:
    made = []

    def operation() -> None:
        made.append(1)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        call_with_retries(operation)
    assert len(made) == 1


def test_an_error_that_passes_is_forgotten() -> None:
    errors = [OSError("reset"), aiohttp.ServerDisconnectedError()]
    assert call_with_retries(lambda: _raise(errors.pop()) if errors else "read") == "read"


def _raise(error: Exception) -> str:
    raise error


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_is_deleted_with_all_that_is_in_it(tmp_path: Path, remote: bool) -> None:
    folder = StorageFolder("memory://storage-test" if remote else tmp_path)
    folder.write("a/b/c", b"1")
    folder.write("a/d", b"2")
    folder.write("e", b"3")
    folder.remove_folder("a/b")
    assert [file.name for file in folder.files("a")] == ["d"]
    folder.remove_folder("a")
    folder.remove_folder("a")
    assert not folder.files("a")
    assert folder.read("e") == b"3"


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_file_that_is_written_piece_by_piece_is_there_whole_or_not_at_all(place: str, tmp_path: Path) -> None:
    folder = StorageFolder(tmp_path / "new" if place == "local" else f"memory://{tmp_path.name}")
    with folder.open_for_writing("whole") as file:
        for piece in (b"one", b"two"):
            file.write(piece)
        assert "whole" not in [stamp.name for stamp in folder.files()]
    assert folder.read("whole") == b"onetwo"

    def fail() -> None:
        with folder.open_for_writing("half") as file:
            file.write(b"one")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fail()
    assert [stamp.name for stamp in folder.files()] == ["whole"]


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_local_file_is_put_into_a_folder_and_found_below_it(place: str, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"12")
    folder = StorageFolder(tmp_path / "new" if place == "local" else f"memory://{tmp_path.name}/new")
    assert folder.walk() == []
    folder.put(tmp_path / "source", "a/b")
    folder.subfolder("c").put(tmp_path / "source", "d")
    folder.put(tmp_path / "source", "a/b")
    assert folder.walk() == ["a/b", "c/d"]
    assert folder.read("a/b") == folder.subfolder("c").read("d") == b"12"
    with pytest.raises(FileNotFoundError):
        folder.put(tmp_path / "none", "e")
    assert folder.walk() == ["a/b", "c/d"]
